// What is compiled of a rule for an instruction set, as tables of functions.
#pragma once

#include <cstdint>

#include "../combinations.h"

namespace wpadamw::cpu {

// Elements per turn of the outer loop: a few cache lines of each array, so that prefetches are
// spread evenly. Also the border between threads, so that no two write to one line of the state.
constexpr int64_t kBlock = 32;

// One tensor of a call.
struct Task {
  uintptr_t param;
  uintptr_t weight;  // 0: there is none apart from the parameter
  uintptr_t grad;
  int64_t offset;
  void* const* state;
  bool has_averages;  // behind the rule's own state
  const double* row;
  const double* held;  // row of the prediction that the parameter holds, where it holds one
  double grad_factor;
  bool has_real_grad;  // its dtype is that of the state
  int num_looks;       // of a row
  void* terms;         // of the state's dtype, kNumTracked times kChunkNumel; null: not tracked
};

// The operation on elements [begin, end).
using Run = void (*)(const Task& task, int64_t begin, int64_t end, bool streaming);
// The sum of each term over n elements, at most kChunkNumel.
using Sum = void (*)(const Task& task, int64_t begin, int64_t n, double* sums);
// A step over n elements, at most kChunkNumel, and kNumTracked sums over them.
using Track = void (*)(Task task, int64_t begin, int64_t n, Run run, bool streaming, double* sums);

// nullptr: this combination is not compiled.
struct RunTable {
  Run at[kNumOperations][kNumSources];
};
struct SumTable {
  Sum at[kNumSources];
};
struct Kernels {
  RunTable run[Supported::kSize];
  SumTable sum[Supported::kSize];
  Track track[Supported::kSize];
};

}  // namespace wpadamw::cpu
