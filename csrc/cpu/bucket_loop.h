// The CPU loop: predict, restore and step over a range of a tensor. Compiled for each rule once per
// instruction set (WPADAMW_ISA names it); contraction being off, all of them give the same bits.
#pragma once

#include <utility>

#include "tensor.h"
#include "write_out.h"

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

// How far ahead of its use a line is asked for, in elements. With this many arrays the hardware's
// prefetchers alone fall short; further ahead than this is slower again.
constexpr int64_t kPrefetchAhead = 128;

template <typename value_t>
WPADAMW_HOST_DEVICE void prefetch_block(const value_t* values) {
  constexpr int64_t kLine = 64;
  const char* address = reinterpret_cast<const char*>(values);
  for (int64_t byte = 0; byte < kBlock * int64_t{sizeof(value_t)}; byte += kLine) {
    __builtin_prefetch(address + byte);
  }
}

template <Operation kOperation, Source kSource, typename Rule, typename param_t>
WPADAMW_HOST_DEVICE void prefetch(const Tensor<Rule, param_t>& tensor, int64_t i) {
  if constexpr (kSource == Source::kBackup) prefetch_block(tensor.weight + i);
  if (kSource != Source::kBackup || tensor.is_tracked()) prefetch_block(tensor.param + i);
  if constexpr (kOperation == Operation::kRestore && kSource == Source::kBackup) return;
  for (int k = 0; k < Rule::kNumStates; ++k) prefetch_block(tensor.state.at[k] + i);
  if constexpr (is_step(kOperation)) {
    if (tensor.has_averages()) prefetch_block(tensor.average + i);
    if (tensor.has_real_grad) {
      prefetch_block(tensor.real_grad() + i);
    } else {
      prefetch_block(tensor.other_grad() + i);
    }
  }
}

// Predicts by the further looks what the first one has predicted.
template <typename Rule, typename param_t>
void look_on(const Tensor<Rule, param_t>& tensor, int64_t begin, int64_t n, param_t* out) {
  using real_t = typename RealOf<param_t>::type;
  if constexpr (std::is_same_v<param_t, real_t>) {
    tensor.look_on(1, begin, n, out);
  } else {  // anew: values are rounded to the narrower dtype last of all
    real_t values[kBlock];
    for (int64_t j = 0; j < n; ++j) values[j] = tensor.weight[begin + j];
    tensor.look_on(0, begin, n, values);
    for (int64_t j = 0; j < n; ++j) out[j] = Round<param_t>::from(values[j]);
  }
}

// Before a step that is tracked: the true weights, and those that gradients were computed at.
template <Source kSource, typename Rule, typename param_t, typename real_t>
[[gnu::noinline]] void remember(const Tensor<Rule, param_t>& tensor, int64_t begin, int64_t n,
                                const param_t* held, real_t* old, real_t* shown) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const auto state = tensor.load_state(begin + j);
    old[j] = tensor.template true_weight<kSource>(begin + j, state, held[j]);
    shown[j] = to_real(tensor.param[begin + j]);
  }
}

// After it: how far these were from the new weights, and how far the step has led.
template <typename real_t>
[[gnu::noinline]] void compare(real_t* terms, int64_t n, const real_t* old, const real_t* shown,
                               const real_t* weights) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const real_t error = shown[j] - weights[j], moved = weights[j] - old[j];
    terms[j] = error * error;
    terms[kChunkNumel + j] = moved * moved;
    terms[2 * kChunkNumel + j] = error * moved;
  }
}

// The operation on elements [begin, begin + n); the new parameters go to `out`.
template <Operation kOperation, Source kSource, typename Rule, typename param_t>
WPADAMW_HOST_DEVICE void run_block(const Tensor<Rule, param_t>& tensor, int64_t begin, int64_t n,
                                   param_t* __restrict out) {
  using real_t = typename RealOf<param_t>::type;
  const RowOf<Rule, real_t> row = tensor.row;
  alignas(64) real_t undone[kBlock];
  const param_t* held = tensor.param + begin;
  if constexpr (kSource == Source::kPrediction) {
    if (tensor.num_looks > 1) {
      tensor.undo(begin, n, undone);
      held = undone;
    }
  }
  alignas(64) real_t converted[kBlock];
  const real_t* grads = nullptr;
  if constexpr (is_step(kOperation)) grads = tensor.gradients(begin, n, converted);
  alignas(64) real_t old[kBlock], shown[kBlock];
  if constexpr (is_step(kOperation)) {
    if (tensor.is_tracked()) remember<kSource>(tensor, begin, n, held, old, shown);
  }
  // Where they have no place of their own true weights wait here for the averages.
  alignas(64) real_t apart[kBlock];
  real_t* weights = kSource == Source::kBackup ? tensor.weight + begin : apart;
  // Every load of an element precedes its stores and no two arrays overlap.
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const int64_t i = begin + j;
    const auto state = tensor.load_state(i);
    Element<Rule, real_t> element{state, tensor.template true_weight<kSource>(i, state, held[j])};
    real_t gradient{};
    if constexpr (is_step(kOperation)) gradient = grads[j] * tensor.grad_factor;
    out[j] = Round<param_t>::from(apply<kOperation>(element, gradient, row));
    if constexpr (is_step(kOperation)) {
      tensor.store_state(i, element.state);
      weights[j] = element.weight;
    }
  }
  if constexpr (is_step(kOperation)) {
    if (tensor.has_averages()) tensor.move_averages(begin, n, weights);
    if (tensor.is_tracked()) compare(tensor.terms + begin % kChunkNumel, n, old, shown, weights);
  }
  if constexpr (predicts(kOperation)) {
    if (tensor.num_looks > 1) look_on(tensor, begin, n, out);
  }
}

template <typename Rule, typename param_t, Operation kOperation, Source kSource>
void run_range(const Task& task, int64_t begin, int64_t end, bool streaming) {
  const Tensor<Rule, param_t> tensor(task);
  alignas(64) param_t out[kBlock];
  // Without a backup the parameter's line has just been read: nothing to save by streaming.
  streaming = streaming && kSource == Source::kBackup;
  int64_t i = begin;
  for (; i + kBlock <= end; i += kBlock) {
    prefetch<kOperation, kSource>(tensor, i + kPrefetchAhead);
    run_block<kOperation, kSource>(tensor, i, kBlock, out);
    write_out(tensor.param + i, out, kBlock, streaming);
  }
  if (i >= end) return;
  run_block<kOperation, kSource>(tensor, i, end - i, out);
  write_out(tensor.param + i, out, end - i, false);
}

template <typename Rule, typename dtypes, Operation kOperation, Source kSource>
constexpr Run run_or_null() {
  if constexpr (is_compiled<Rule, dtypes>(kOperation, kSource)) {
    return run_range<Rule, typename dtypes::param_t, kOperation, kSource>;
  } else {
    return nullptr;
  }
}

// Positions are the numbers of operations and sources.
template <typename Rule, typename dtypes, int... kPositions>
constexpr RunTable run_table(std::integer_sequence<int, kPositions...>) {
  RunTable table{};
  ((table.at[kPositions / kNumSources][kPositions % kNumSources] =
        run_or_null<Rule, dtypes, Operation(kPositions / kNumSources),
                    Source(kPositions % kNumSources)>()),
   ...);
  return table;
}

template <typename Rule, typename dtypes>
constexpr RunTable run_table() {
  return run_table<Rule, dtypes>(
      std::make_integer_sequence<int, kNumOperations * kNumSources>());
}

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
