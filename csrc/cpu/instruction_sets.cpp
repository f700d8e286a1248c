// Which build of the CPU loop this processor runs, and what the loops share.
#include <cstring>
#include <stdexcept>
#include <string>

#include "bucket_kernels.h"

namespace wpadamw {
namespace {

struct InstructionSet {
  const char* name;
  bool (*is_supported)();
  CpuLoop run;
};

#if defined(__x86_64__)
// What the compiler may use under -march=x86-64-v3 and -v4, as far as this code can meet it.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

// Best first.
const InstructionSet kInstructionSets[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, avx512::run},
    {"avx2", has_avx2, avx2::run},
#endif
    {"baseline", [] { return true; }, baseline::run},
};

}  // namespace

bool is_idle(const Call& call, const Span& span) {
  return is_step(call.operation) && span.grad == 0;
}

int64_t busy_elements(const Bucket& bucket, const Call& call) {
  int64_t total = 0;
  for (const Span& span : bucket.spans) total += is_idle(call, span) ? 0 : span.numel;
  return total;
}

std::vector<const char*> instruction_sets() {
  std::vector<const char*> names;
  for (const InstructionSet& set : kInstructionSets) {
    if (set.is_supported()) names.push_back(set.name);
  }
  return names;
}

CpuLoop cpu_loop(const char* instruction_set) {
  for (const InstructionSet& set : kInstructionSets) {
    const bool is_wanted = instruction_set == nullptr || !std::strcmp(set.name, instruction_set);
    if (is_wanted && set.is_supported()) return set.run;
  }
  throw std::invalid_argument(std::string("instruction_set must be one that this processor runs, got ") +
                              instruction_set);
}

}  // namespace wpadamw
