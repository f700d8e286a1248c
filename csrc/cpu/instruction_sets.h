// The instruction sets for which the CPU loops are compiled, and the choice between them.
#pragma once

#include <vector>

#include "kernels.h"

namespace wpadamw::cpu {

// Of every rule, in the order of the list of rules; instruction_sets.cpp says when to use which.
namespace baseline {
extern const Kernels* const kKernels[];
extern const Stored kStored;
}
namespace avx2 {
extern const Kernels* const kKernels[];
extern const Stored kStored;
}
namespace avx512 {
extern const Kernels* const kKernels[];
extern const Stored kStored;
}

// Names of the instruction sets that this processor runs, best first.
std::vector<const char*> instruction_sets();
// For the named instruction set; nullptr: the best one. Throws for one that is not there.
struct Loops {
  const Kernels& of_rule;
  const Stored& stored;
};
Loops loops_of(size_t rule, const char* instruction_set);

}  // namespace wpadamw::cpu
