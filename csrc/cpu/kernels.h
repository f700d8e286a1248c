// What is compiled of a rule for an instruction set, as tables of functions.
#pragma once

#include <cstdint>

#include "../combinations.h"
#include "../formats.h"

namespace wpadamw::cpu {

// Elements per turn of the outer loop: a few cache lines of each array, so that prefetches are
// spread evenly. Also the border between threads, so that no two write to one line of the state.
constexpr int64_t kBlock = 32;

// Tensors of a rule's state at most, and one of averages.
constexpr int kMaxStates = 5;

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

  bool is_noisy;
  // Of what is stored in small formats; see Bucket.
  DType param_dtype;
  const Format* formats;
  float* const* scales;
  int16_t* rest;
  bool has_noisy_params;
  int num_tensors;  // of the state
  int step_width;   // of a row

  int num_further() const { return has_averages + is_noisy; }
};

// The operation on elements [begin, end).
using Run = void (*)(const Task& task, int64_t begin, int64_t end, bool streaming);
// The sum of each term over n elements, at most kChunkNumel.
using Sum = void (*)(const Task& task, int64_t begin, int64_t n, double* sums);
// A step over n elements, at most kChunkNumel, and kNumTracked sums over them.
using Track = void (*)(Task task, int64_t begin, int64_t n, Run run, bool streaming, double* sums);

struct RunTable;
// The same over what is stored in small formats, by the loops for float32.
using RunStored = void (*)(const Task& task, const RunTable& whole, Operation operation,
                           Source source, int64_t begin, int64_t end);
using SumStored = void (*)(const Task& task, Sum whole, int64_t begin, int64_t n, double* sums);
using TrackStored = void (*)(Task task, const RunTable& whole, Operation operation, Source source,
                             int64_t begin, int64_t n, double* sums);
struct Stored {
  RunStored run;
  SumStored sum;
  TrackStored track;
};

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
