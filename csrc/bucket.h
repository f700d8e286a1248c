// What a kernel is handed: a table of tensors, their flat state, and the scalars of this step.
// Nothing here knows a framework; Python has checked shapes, dtypes and devices before.
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"
#include "formats.h"
#include "operation.h"

namespace wpadamw {

// One tensor of a bucket, in memory order.
struct Span {
  uintptr_t param = 0;
  uintptr_t weight = 0;  // the true weights, where the bucket has them apart
  uintptr_t grad = 0;  // 0: no gradient in this step, the tensor is left alone
  int64_t offset = 0;  // of its state in the flat buffers, in elements
  int64_t numel = 0;
  int32_t row = 0;    // of Call::scalars: this operation's scalars; -1: true weights are held
  int32_t held = -1;  // of Call::scalars: the prediction that the parameter holds; -1: none
};

struct Bucket {
  DType param_dtype{};
  bool has_weights = false;  // true weights, apart from what parameters hold
  bool has_averages = false;  // of true weights
  bool is_noisy = false;  // rows have the count of an update
  std::vector<void*> state;  // flat, one of each kind; the averages come last
  std::vector<Format> formats;  // of each; none: everything is of the mathematics' dtype
  std::vector<float*> scales;   // of each, flat; null where the format has none
  int16_t* rest = nullptr;      // flat: of float32 weights, what bfloat16 parameters lack
  bool has_noisy_params = false;  // bfloat16, without a rest: a step rounds them with noise
  std::vector<Span> spans;
  int num_looks = 1;  // of a row of scalars

  int num_further() const { return has_averages + is_noisy; }
  bool is_small() const { return !formats.empty(); }
};

struct Call {
  Operation operation{};
  DType grad_dtype{};
  const double* scalars = nullptr;
  int row_width = 0;
  int step_width = 0;  // of its numbers of an update
  int64_t param_size = 0;  // bytes of one element
  double grad_factor = 1.0;
  int num_threads = 1;
};

}  // namespace wpadamw
