// The CPU loop: predict, restore and step over a bucket, for every rule and dtype. Compiled once per
// instruction set (WPADAMW_ISA names it); contraction being off, all of them give the same bits.
#include "bucket_kernels.h"

#include <omp.h>

#include <algorithm>

#include "../float_types.h"
#include "../operation.h"
#include "../rules/rules.h"
#include "../scalars.h"
#include "write_out.h"

namespace wpadamw::WPADAMW_ISA {
namespace {

// Elements per turn of the outer loop: a few cache lines of each array, so that prefetches are
// spread evenly. Also the border between threads, so that no two write to one line of the state.
constexpr int64_t kBlock = 32;

// How far ahead of its use a line is asked for, in elements. With this many arrays the hardware's
// prefetchers alone fall short; further ahead than this is slower again.
constexpr int64_t kPrefetchAhead = 128;

// Below this many elements a second thread costs more to wake than it saves.
constexpr int64_t kMinElementsPerThread = 16384;

// A bucket with more bytes of parameters than this finds none of them in the cache at its next turn.
constexpr int64_t kStreamingBytes = int64_t{8} << 20;

// Where the true weight of an element is found.
enum class Source { kBackup, kParam, kPrediction };

template <typename real_t>
Scalars<real_t> scalars_at(const Call& call, int32_t row) {
  return round_scalars<real_t>(call.scalars.data() + int64_t{row} * kNumScalars);
}

// One tensor of a bucket: every pointer is at its first element.
template <typename Rule, typename param_t, typename grad_t>
struct Tensor {
  using real_t = typename RealOf<param_t>::type;
  using State = typename Rule::template State<real_t>;

  param_t* param;
  const grad_t* grad;
  real_t* weight = nullptr;
  real_t* state[Rule::kNumStates];
  Scalars<real_t> scalars, last_scalars;

  Tensor(const Bucket& bucket, const Call& call, const Span& span)
      : param(reinterpret_cast<param_t*>(span.param)),
        grad(reinterpret_cast<const grad_t*>(span.grad)),
        scalars(scalars_at<real_t>(call, span.row)),
        last_scalars(scalars_at<real_t>(call, std::max(span.last_row, 0))) {
    if (bucket.weight != nullptr) weight = static_cast<real_t*>(bucket.weight) + span.offset;
    for (int k = 0; k < Rule::kNumStates; ++k) {
      state[k] = static_cast<real_t*>(bucket.state[k]) + span.offset;
    }
  }

  WPADAMW_HOST_DEVICE State load_state(int64_t i) const {
    State values;
    for (int k = 0; k < Rule::kNumStates; ++k) values.at[k] = state[k][i];
    return values;
  }

  WPADAMW_HOST_DEVICE void store_state(int64_t i, const State& values) const {
    for (int k = 0; k < Rule::kNumStates; ++k) state[k][i] = values.at[k];
  }

  template <Source kSource>
  WPADAMW_HOST_DEVICE real_t true_weight(int64_t i, const State& values) const {
    if constexpr (kSource == Source::kBackup) return weight[i];
    const real_t held = to_real(param[i]);
    if constexpr (kSource == Source::kParam) return held;
    return recover_weight<Rule>(held, values, last_scalars);
  }

  // The operation on elements [begin, begin + n); the new parameters go to `out`.
  template <Operation kOperation, Source kSource>
  WPADAMW_HOST_DEVICE void run(int64_t begin, int64_t n, param_t* __restrict out) const {
    const Scalars<real_t> s = scalars;
    // Every load of an element precedes its stores and no two arrays overlap.
#pragma GCC ivdep
    for (int64_t j = 0; j < n; ++j) {
      const int64_t i = begin + j;
      const State values = load_state(i);
      Element<Rule, real_t> element{values, true_weight<kSource>(i, values)};
      real_t gradient{};
      if constexpr (is_step(kOperation)) gradient = to_real(grad[i]);
      out[j] = Round<param_t>::from(apply<kOperation>(element, gradient, s));
      if constexpr (is_step(kOperation)) {
        store_state(i, element.state);
        if constexpr (kSource == Source::kBackup) weight[i] = element.weight;
      }
    }
  }

  template <Operation kOperation, Source kSource>
  WPADAMW_HOST_DEVICE void prefetch(int64_t i) const {
    if constexpr (kSource == Source::kBackup) prefetch_block(weight + i);
    if constexpr (kSource != Source::kBackup) prefetch_block(param + i);
    if constexpr (kOperation == Operation::kRestore && kSource != Source::kPrediction) return;
    for (int k = 0; k < Rule::kNumStates; ++k) prefetch_block(state[k] + i);
    if constexpr (is_step(kOperation)) prefetch_block(grad + i);
  }

  template <typename value_t>
  static WPADAMW_HOST_DEVICE void prefetch_block(const value_t* values) {
    constexpr int64_t kLine = 64;
    const char* address = reinterpret_cast<const char*>(values);
    for (int64_t byte = 0; byte < kBlock * int64_t{sizeof(value_t)}; byte += kLine) {
      __builtin_prefetch(address + byte);
    }
  }

  template <Operation kOperation, Source kSource>
  void run_range(int64_t begin, int64_t end, bool streaming) const {
    alignas(64) param_t out[kBlock];
    // Without a backup the parameter's line has just been read: nothing to save by streaming.
    streaming = streaming && kSource == Source::kBackup;
    int64_t i = begin;
    for (; i + kBlock <= end; i += kBlock) {
      prefetch<kOperation, kSource>(i + kPrefetchAhead);
      run<kOperation, kSource>(i, kBlock, out);
      write_out(param + i, out, kBlock, streaming);
    }
    run<kOperation, kSource>(i, end - i, out);
    write_out(param + i, out, end - i, false);
  }

  template <Operation kOperation>
  void run_range(int64_t begin, int64_t end, bool streaming, Source source) const {
    // Parameters narrower than their state always have a backup: it is their master weight.
    if constexpr (sizeof(param_t) < sizeof(real_t)) {
      return run_range<kOperation, Source::kBackup>(begin, end, streaming);
    } else {
      switch (source) {
        case Source::kBackup: return run_range<kOperation, Source::kBackup>(begin, end, streaming);
        case Source::kParam: return run_range<kOperation, Source::kParam>(begin, end, streaming);
        case Source::kPrediction:
          return run_range<kOperation, Source::kPrediction>(begin, end, streaming);
      }
    }
  }

  void run_range(int64_t begin, int64_t end, bool streaming, Source source, Operation op) const {
    switch (op) {
      case Operation::kStep: return run_range<Operation::kStep>(begin, end, streaming, source);
      case Operation::kStepAndPredict:
        return run_range<Operation::kStepAndPredict>(begin, end, streaming, source);
      case Operation::kPredict: return run_range<Operation::kPredict>(begin, end, streaming, source);
      case Operation::kRestore: return run_range<Operation::kRestore>(begin, end, streaming, source);
    }
  }
};

Source source_of(const Bucket& bucket, const Span& span) {
  if (bucket.weight != nullptr) return Source::kBackup;
  return span.last_row < 0 ? Source::kParam : Source::kPrediction;
}

// Elements [first, past) of the bucket, counted over its busy tensors in table order.
template <typename Rule, typename param_t, typename grad_t>
void run_thread(const Bucket& bucket, const Call& call, int64_t first, int64_t past, bool streaming) {
  int64_t start = 0;
  for (const Span& span : bucket.spans) {
    if (start >= past) break;
    if (is_idle(call, span)) continue;
    const int64_t begin = std::max<int64_t>(first - start, 0);
    const int64_t end = std::min(past - start, span.numel);
    if (begin < end) {
      const Tensor<Rule, param_t, grad_t> tensor(bucket, call, span);
      tensor.run_range(begin, end, streaming, source_of(bucket, span), call.operation);
    }
    start += span.numel;
  }
  if (streaming) finish_writes();
}

// Where thread `index` of `count` begins.
int64_t split(int64_t total, int index, int count) {
  return index == count ? total : total / count * index / kBlock * kBlock;
}

template <typename Rule, typename param_t, typename grad_t>
void run_bucket(const Bucket& bucket, const Call& call) {
  const int64_t total = busy_elements(bucket, call);
  if (total == 0) return;
  const int64_t useful = (total + kMinElementsPerThread - 1) / kMinElementsPerThread;
  const int num_threads = static_cast<int>(std::clamp<int64_t>(useful, 1, call.num_threads));
  const bool streaming = total * static_cast<int64_t>(sizeof(param_t)) > kStreamingBytes;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    // The runtime may grant fewer threads than asked for.
    const int count = omp_get_num_threads(), index = omp_get_thread_num();
    run_thread<Rule, param_t, grad_t>(bucket, call, split(total, index, count),
                                      split(total, index + 1, count), streaming);
  }
}

template <typename Rule>
void run_dtypes(const Bucket& bucket, const Call& call) {
  const bool same = call.grad_dtype == bucket.param_dtype;
  switch (bucket.param_dtype) {
    case DType::kFloat32: return run_bucket<Rule, float, float>(bucket, call);
    case DType::kBFloat16:
      return same ? run_bucket<Rule, bfloat16, bfloat16>(bucket, call)
                  : run_bucket<Rule, bfloat16, float>(bucket, call);
    case DType::kFloat16:
      return same ? run_bucket<Rule, float16, float16>(bucket, call)
                  : run_bucket<Rule, float16, float>(bucket, call);
    case DType::kFloat64:
      return same ? run_bucket<Rule, double, double>(bucket, call)
                  : run_bucket<Rule, double, float>(bucket, call);
  }
}

}  // namespace

void run(const Bucket& bucket, const Call& call) {
  int id = 0;
#define WPADAMW_RUN_IF_CHOSEN(Rule) \
  if (static_cast<int>(bucket.rule) == id++) return run_dtypes<Rule>(bucket, call);
  WPADAMW_FOR_EACH_RULE(WPADAMW_RUN_IF_CHOSEN)
#undef WPADAMW_RUN_IF_CHOSEN
}

}  // namespace wpadamw::WPADAMW_ISA
