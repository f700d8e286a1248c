// How a thread reaches its elements of what is stored in small formats. These are known when a kernel
// runs, not before: so a rule has one kernel of each operation.
#pragma once

#include "elements.h"
#include "words.h"

namespace wpadamw::cuda {
namespace {

// Beside what any kernel is handed.
template <typename Rule>
struct StoredArguments : Arguments<Rule, float> {
  DType param_dtype, grad_dtype;
  bool has_weights, has_noisy_params, has_scales = false;
  int16_t* rest;
  Values<Format, Rule::kNumStates> formats;
  Values<char*, Rule::kNumStates> codes;
  Values<float*, Rule::kNumStates> scales;

  StoredArguments(const Bucket& bucket, const Call& call)
      : Arguments<Rule, float>(bucket, call),
        param_dtype(bucket.param_dtype),
        grad_dtype(call.grad_dtype),
        has_weights(bucket.has_weights),
        has_noisy_params(bucket.has_noisy_params),
        rest(bucket.rest) {
    for (size_t k = 0; k < Rule::kNumStates; ++k) {
      const bool is_small = bucket.is_small();  // usual buckets are tracked here, too
      formats.at[k] = is_small ? bucket.formats[k] : Format::kWhole;
      codes.at[k] = static_cast<char*>(bucket.state[k]);
      scales.at[k] = is_small ? bucket.scales[k] : nullptr;
      has_scales |= wpadamw::has_scales(formats.at[k]);
    }
  }
};

// The elements of one thread.
template <typename Rule, Operation kOperation>
struct StoredElements {
  using State = typename Rule::template State<float>;
  using Look = typename Rule::template Look<float>;
  static constexpr int kNumStates = Rule::kNumStates;

  const StoredArguments<Rule>& arguments;
  const Chunk& chunk;
  int i;  // the first one, in the chunk
  Range range;
  float shown[kWidth], weight[kWidth], grad[kWidth];
  float state[kNumStates > 0 ? kNumStates : 1][kWidth];

  __device__ StoredElements(const StoredArguments<Rule>& arguments, const Chunk& chunk,
                            uintptr_t grad_address)
      : arguments(arguments), chunk(chunk), i(static_cast<int>(threadIdx.x) * kWidth) {
    const int left = chunk.numel - i;
    range.n = left < 0 ? 0 : left < kWidth ? left : kWidth;
    grad_ = memory(grad_address) + chunk.begin * size_of(arguments.grad_dtype);
    range.has_packs = is_aligned(memory(chunk.param)) && is_aligned(memory(chunk.weight)) &&
                      (!is_step(kOperation) || is_aligned(grad_));
  }

  // Not where a parameter is but written to.
  __device__ bool needs_param(bool is_tracked) const {
    return !arguments.has_weights || is_tracked;
  }
  __device__ bool needs_state() const {
    return kOperation != Operation::kRestore || !arguments.has_weights;
  }

  __device__ void load(bool is_tracked) {
    Words param, lower, backup, gradient, words[kNumStates > 0 ? kNumStates : 1];
    float scales[kNumStates > 0 ? kNumStates : 1];
    if (needs_param(is_tracked)) {
      const int size = size_of(arguments.param_dtype);
      param.load(memory(chunk.param) + i * size, size, range);
      if (arguments.rest != nullptr) lower.load(arguments.rest + chunk.offset + i, 2, range);
    }
    if (arguments.has_weights) backup.load(memory(chunk.weight) + i * 4, 4, range);
    if constexpr (is_step(kOperation)) {
      const int size = size_of(arguments.grad_dtype);
      gradient.load(grad_ + i * size, size, range);
    }
#pragma unroll
    for (int k = 0; k < kNumStates; ++k) {
      if (!needs_state()) continue;
      words[k].load(codes(k), size_of(format(k)), range);
      scales[k] = has_scales(format(k)) && range.n > 0 ? *scale(k) : 0.0f;
    }
    widen_param(param, lower);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      weight[j] = arguments.has_weights ? float_of(backup.at[j]) : shown[j];
    }
    if constexpr (is_step(kOperation)) widen(gradient, arguments.grad_dtype, grad);
#pragma unroll
    for (int k = 0; k < kNumStates; ++k) decode(words[k], format(k), scales[k], state[k]);
  }

  // `count` is that of the update, in a step.
  __device__ void store_param(const float (&values)[kWidth], double count) const {
    Words upper, lower;
    if (is_step(kOperation) && arguments.has_noisy_params) {
      const uint32_t first = static_cast<uint32_t>(chunk.begin + i) + key_of(count, 1);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const uint32_t noise = noise_at(static_cast<uint32_t>(j), first);
        upper.put(j, noisy_bfloat16(values[j], noise).bits);
      }
    } else if (arguments.rest == nullptr) {
      upper = narrowed(values, arguments.param_dtype);
    } else {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const Parts parts = split(values[j]);
        upper.put(j, parts.high.bits);
        lower.put(j, static_cast<uint16_t>(parts.rest));
      }
      lower.store(arguments.rest + chunk.offset + i, 2, range);
    }
    const int size = size_of(arguments.param_dtype);
    upper.store(memory(chunk.param) + i * size, size, range);
  }

  __device__ void store_weight() const {
    narrowed(weight, DType::kFloat32).store(memory(chunk.weight) + i * 4, 4, range);
  }

  // Leaves the state that can be read again: what follows goes by it. All threads of a block call it.
  __device__ void store_state(double count) {
    float scales[kNumStates > 0 ? kNumStates : 1] = {};
    if (arguments.has_scales) find_scales(scales);
    const uint32_t first = static_cast<uint32_t>(chunk.begin + i) + key_of(count, 0);
#pragma unroll
    for (int k = 0; k < kNumStates; ++k) {
      const Words words = encoded(format(k), state[k], scales[k], first);
      words.store(codes(k), size_of(format(k)), range);
      const bool is_first = static_cast<int>(threadIdx.x) % kThreadsPerFormatBlock == 0;
      if (has_scales(format(k)) && is_first && range.n > 0) *scale(k) = scales[k];
      decode(words, format(k), scales[k], state[k]);
    }
  }

  __device__ State state_of(int j) const {
    State values;
#pragma unroll
    for (int k = 0; k < kNumStates; ++k) values.at[k] = state[k][j];
    return values;
  }

  // True weights from what parameters hold.
  __device__ void undo() {
    const bool is_held = !arguments.has_weights && arguments.holds_prediction_of(chunk.tensor);
    if constexpr (kCanRecover<Rule> && kOperation != Operation::kPredict) {
#pragma unroll 1
      for (int k = is_held ? arguments.num_looks : 0; k > 0; --k) {
        const Look look = k == 1 ? arguments.held_of(chunk.tensor)
                                 : arguments.held_look(chunk.tensor, k - 1);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) weight[j] = Rule::recover(weight[j], state_of(j), look);
      }
    }
  }

  __device__ void predict(const Look& first, float (&values)[kWidth]) const {
#pragma unroll 1
    for (int k = 0; k < arguments.num_looks; ++k) {
      const Look look = k == 0 ? first : arguments.look(chunk.tensor, k);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[j] = Rule::predict(values[j], state_of(j), look);
    }
  }

  __device__ void step(const RowOf<Rule, float>& row) {
    const float factor = arguments.factor();
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      State values = state_of(j);
      Rule::step(weight[j], values, grad[j] * factor, row.step, row.look);
#pragma unroll
      for (int k = 0; k < kNumStates; ++k) state[k][j] = values.at[k];
    }
  }

  __device__ void move_averages() const {
    float* averages = arguments.averages + chunk.offset + i;
    const float share = arguments.average_share_of(chunk.tensor);
    Words words;
    words.load(averages, 4, range);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      words.at[j] = bits_of(moved_average(float_of(words.at[j]), weight[j], share));
    }
    words.store(averages, 4, range);
  }

 private:
  const char* grad_;

  __device__ char* memory(uintptr_t address) const { return arguments.memory + address; }
  __device__ Format format(int k) const { return arguments.formats.at[k]; }
  __device__ char* codes(int k) const {
    return arguments.codes.at[k] + (chunk.offset + i) * size_of(format(k));
  }
  __device__ float* scale(int k) const {
    return arguments.scales.at[k] + (chunk.offset + i) / kFormatBlock;
  }

  __device__ void widen_param(const Words& param, const Words& lower) {
    if (arguments.rest == nullptr) return widen(param, arguments.param_dtype, shown);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      shown[j] = joined({param.bits<uint16_t>(j)}, static_cast<int16_t>(lower.bits<uint16_t>(j)));
    }
  }

  // The largest magnitudes of this thread's block of codes: each of its threads finds some.
  __device__ void find_scales(float* scales) const {
    __shared__ int32_t largest[kNumStates > 0 ? kNumStates : 1][kThreads];
    const int thread = static_cast<int>(threadIdx.x);
    const int first = thread / kThreadsPerFormatBlock * kThreadsPerFormatBlock;
#pragma unroll
    for (int k = 0; k < kNumStates; ++k) {
      int32_t most = 0;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (j < range.n) most = max_of(most, magnitude_of(state[k][j]));
      }
      largest[k][thread] = most;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kNumStates; ++k) {
      int32_t most = 0;
#pragma unroll
      for (int t = 0; t < kThreadsPerFormatBlock; ++t) most = max_of(most, largest[k][first + t]);
      scales[k] = scale_of(most);
    }
  }

  static __device__ int32_t max_of(int32_t a, int32_t b) { return a > b ? a : b; }

  static __device__ void decode(const Words& words, Format format, float scale,
                                float (&to)[kWidth]) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (format == Format::kWhole) {
        to[j] = float_of(words.at[j]);
      } else if (format == Format::kInt8) {
        to[j] = Int8::number_of(static_cast<int8_t>(words.bits<uint8_t>(j)), scale);
      } else if (format == Format::kUInt8) {
        to[j] = UInt8::number_of(words.bits<uint8_t>(j), scale);
      } else {
        to[j] = to_real(bfloat16{words.bits<uint16_t>(j)});
      }
    }
  }

  static __device__ Words encoded(Format format, const float (&values)[kWidth], float scale,
                                  uint32_t first) {
    Words words;
    const float factor = format == Format::kInt8 ? Int8::factor_of(scale) : UInt8::factor_of(scale);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const uint32_t noise = noise_at(static_cast<uint32_t>(j), first);
      if (format == Format::kWhole) {
        words.at[j] = bits_of(values[j]);
      } else if (format == Format::kInt8) {
        words.put(j, static_cast<uint8_t>(Int8::code_of(values[j], factor, noise)));
      } else if (format == Format::kUInt8) {
        words.put(j, static_cast<uint8_t>(UInt8::code_of(values[j], factor, noise)));
      } else {
        words.put(j, noisy_bfloat16(values[j], noise).bits);
      }
    }
    return words;
  }
};

}  // namespace
}  // namespace wpadamw::cuda
