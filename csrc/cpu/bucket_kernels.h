// The CPU loop for each instruction set, and the choice between them.
#pragma once

#include "../bucket.h"

namespace wpadamw {

// Compiled from bucket_kernels.cpp once each; the table in instruction_sets.cpp says when to use which.
namespace baseline {
void run(const Bucket& bucket, const Call& call);
}
namespace avx2 {
void run(const Bucket& bucket, const Call& call);
}
namespace avx512 {
void run(const Bucket& bucket, const Call& call);
}

// Whether the operation leaves this tensor alone.
bool is_idle(const Call& call, const Span& span);
// How many elements the operation touches.
int64_t busy_elements(const Bucket& bucket, const Call& call);

// Names of the instruction sets that this processor runs, best first.
std::vector<const char*> instruction_sets();
using CpuLoop = void (*)(const Bucket& bucket, const Call& call);
// For the named instruction set; nullptr: the best one. Throws for one that is not there.
CpuLoop cpu_loop(const char* instruction_set);

}  // namespace wpadamw
