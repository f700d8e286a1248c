// Which build of the CPU loops this processor runs.
#include "instruction_sets.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace wpadamw::cpu {
namespace {

struct InstructionSet {
  const char* name;
  bool (*is_supported)();
  const Kernels* const* kernels;
  const Stored* stored;
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
    {"avx512", has_avx512, avx512::kKernels, &avx512::kStored},
    {"avx2", has_avx2, avx2::kKernels, &avx2::kStored},
#endif
    {"baseline", [] { return true; }, baseline::kKernels, &baseline::kStored},
};

}  // namespace

std::vector<const char*> instruction_sets() {
  std::vector<const char*> names;
  for (const InstructionSet& set : kInstructionSets) {
    if (set.is_supported()) names.push_back(set.name);
  }
  return names;
}

Loops loops_of(size_t rule, const char* instruction_set) {
  for (const InstructionSet& set : kInstructionSets) {
    const bool is_wanted = instruction_set == nullptr || !std::strcmp(set.name, instruction_set);
    if (is_wanted && set.is_supported()) return {*set.kernels[rule], *set.stored};
  }
  const std::string constraint = "instruction_set must be one that this processor runs, got ";
  throw std::invalid_argument(constraint + instruction_set);
}

}  // namespace wpadamw::cpu
