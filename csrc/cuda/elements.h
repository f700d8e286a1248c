// How a block reaches the elements of its chunk.
#pragma once

#include "launch.h"
#include "pack.h"

namespace wpadamw::cuda {
namespace {

// What a kernel reads of its bucket and call, in the dtype of the state.
template <typename Rule, typename real_t>
struct Arguments {
  using Look = typename Rule::template Look<real_t>;

  // Address 0. The table holds addresses as numbers; as offsets from a kernel's argument the
  // compiler knows them for global memory, and needs no generic accesses.
  char* memory = nullptr;
  const Chunk* chunks;
  const uintptr_t* grads;
  int64_t num_tensors;
  Values<real_t*, Rule::kNumStates> state;
  real_t* averages = nullptr;  // or null
  real_t average_share{};
  double count = 0.0;
  const double* scalars;
  const int32_t* index;
  RowOf<Rule, real_t> row{};
  Look held{};
  bool holds_prediction;
  real_t grad_factor;
  const double* grad_factor_address;
  const float* found_inf;
  int num_looks, num_further;
  bool predicts;

  Arguments(const Bucket& bucket, const Call& call)
      : chunks(bucket.chunks),
        grads(bucket.grads),
        num_tensors(bucket.num_tensors),
        scalars(call.rows.scalars),
        index(call.rows.index),
        holds_prediction(call.rows.held != nullptr),
        grad_factor(static_cast<real_t>(call.grad_factor)),
        grad_factor_address(call.grad_factor_address),
        found_inf(call.found_inf),
        num_looks(bucket.num_looks),
        num_further(bucket.num_further()),
        predicts(wpadamw::predicts(call.operation)) {
    if (call.rows.row != nullptr) row = round_row<Rule, real_t>(call.rows.row, num_further);
    if (call.rows.held != nullptr) {
      held = round_nth_look<Rule, real_t>(looks_of<Rule>(call.rows.held, num_further), 0);
    }
    const auto flat = [&](int k) {
      return static_cast<real_t*>(bucket.state[static_cast<size_t>(k)]);
    };
    for (int k = 0; k < Rule::kNumStates; ++k) state.at[k] = flat(k);
    if (bucket.is_noisy && call.rows.row != nullptr) {
      count = call.rows.row[kNumStep<Rule> + num_further - 1];
    }
    if (!bucket.has_averages) return;
    averages = flat(Rule::kNumStates);
    if (call.rows.row != nullptr) {
      average_share = static_cast<real_t>(call.rows.row[kNumStep<Rule>]);
    }
  }

  __device__ bool is_void() const { return found_inf != nullptr && *found_inf != 0.0f; }
  __device__ bool moves_nothing(int32_t tensor) const {
    return index != nullptr && index[tensor] < 0;
  }
  __device__ bool holds_prediction_of(int32_t tensor) const {
    return index == nullptr ? holds_prediction : index[num_tensors + tensor] >= 0;
  }
  __device__ RowOf<Rule, real_t> row_of(int32_t tensor) const {
    if (index == nullptr) return row;
    return round_row<Rule, real_t>(at(index[tensor] < 0 ? 0 : index[tensor]), num_further);
  }
  __device__ bool has_averages() const { return averages != nullptr; }
  __device__ real_t average_share_of(int32_t tensor) const {
    if (index == nullptr) return average_share;
    return static_cast<real_t>(at(index[tensor])[kNumStep<Rule>]);
  }
  // Of the update, where rows have it.
  __device__ double count_of(int32_t tensor) const {
    return index == nullptr ? count : at(index[tensor])[kNumStep<Rule> + num_further - 1];
  }
  __device__ Look held_of(int32_t tensor) const {
    return index == nullptr ? held : held_look(tensor, 0);
  }
  __device__ real_t factor() const {
    return grad_factor_address == nullptr ? grad_factor : static_cast<real_t>(*grad_factor_address);
  }
  // Rows of several looks lie in device memory.
  __device__ Look look(int32_t tensor, int n) const {
    const double* row = at(index[tensor] < 0 ? 0 : index[tensor]);
    return round_nth_look<Rule, real_t>(looks_of<Rule>(row, num_further), n);
  }
  __device__ Look held_look(int32_t tensor, int n) const {
    const double* row = at(index[num_tensors + tensor]);
    return round_nth_look<Rule, real_t>(looks_of<Rule>(row, num_further), n);
  }
  __device__ const double* at(int32_t i) const {
    return scalars + int64_t{i} * (kNumStep<Rule> + num_further + num_looks * kNumLook<Rule>);
  }
};

// One chunk: every pointer is at its first element.
template <typename Rule, typename param_t, typename grad_t, Operation kOperation, bool kHasBackup>
struct Elements {
  using real_t = typename RealOf<param_t>::type;
  using State = typename Rule::template State<real_t>;
  using Look = typename Rule::template Look<real_t>;
  static constexpr int kWidth = pack_width<param_t, grad_t>();
  static constexpr int kPacks = kElementsPerThread / kWidth;
  // What is predicted from are true weights.
  static constexpr bool kMayHoldPrediction =
      !kHasBackup && kCanRecover<Rule> && kOperation != Operation::kPredict;

  template <int kN>
  struct Loaded {
    Pack<param_t, kN> param;  // without a backup: what the parameter held
    Pack<grad_t, kN> grad;
    Pack<real_t, kN> weight;
    Values<Pack<real_t, kN>, Rule::kNumStates> state;
  };

  param_t* param;
  const grad_t* grad;
  real_t* weight;
  Values<real_t*, Rule::kNumStates> state;
  int numel;
  bool holds_prediction;
  real_t grad_factor;
  RowOf<Rule, real_t> row;
  Look held;
  int32_t tensor;

  __device__ Elements(const Arguments<Rule, real_t>& arguments, const Chunk& chunk,
                      uintptr_t grad_address)
      : param(reinterpret_cast<param_t*>(arguments.memory + chunk.param)),
        grad(reinterpret_cast<const grad_t*>(arguments.memory + grad_address) + chunk.begin),
        weight(reinterpret_cast<real_t*>(arguments.memory + chunk.weight)),
        numel(chunk.numel),
        holds_prediction(kMayHoldPrediction && arguments.holds_prediction_of(chunk.tensor)),
        grad_factor(arguments.factor()),
        row(arguments.row_of(chunk.tensor)),
        tensor(chunk.tensor) {
    if (kMayHoldPrediction && holds_prediction) held = arguments.held_of(chunk.tensor);
    for (int k = 0; k < Rule::kNumStates; ++k) state.at[k] = arguments.state.at[k] + chunk.offset;
  }

  // The state is always aligned: tensors and chunks begin at multiples of whole packs there.
  __device__ bool has_packs() const {
    return is_aligned(param) && (!kHasBackup || is_aligned(weight)) &&
           (!is_step(kOperation) || is_aligned(grad));
  }

  template <int kN>
  __device__ void load(int i, Loaded<kN>& loaded) const {
    if constexpr (kHasBackup) loaded.weight.load(weight + i);
    if constexpr (!kHasBackup) loaded.param.load(param + i);
    if constexpr (is_step(kOperation)) loaded.grad.load(grad + i);
    if constexpr (!kHasBackup || kOperation != Operation::kRestore) {
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) loaded.state.at[k].load(state.at[k] + i);
    }
  }

  template <int kN>
  static __device__ State state_of(const Loaded<kN>& loaded, int j) {
    State values;
#pragma unroll
    for (int k = 0; k < Rule::kNumStates; ++k) values.at[k] = loaded.state.at[k].values[j];
    return values;
  }

  template <int kN>
  static __device__ Element<Rule, real_t> element(const Loaded<kN>& loaded, int j) {
    if constexpr (kHasBackup) return {state_of(loaded, j), loaded.weight.values[j]};
    return {state_of(loaded, j), to_real(loaded.param.values[j])};
  }

  template <int kN>
  __device__ real_t gradient(const Loaded<kN>& loaded, int j) const {
    return to_real(loaded.grad.values[j]) * grad_factor;
  }

  // Turns what parameters hold into true weights. Looks are outside and elements inside: a look's
  // numbers are read, and rounded from float64, once for all elements.
  template <int kN>
  __device__ void undo(const Arguments<Rule, real_t>& arguments, Loaded<kN>& loaded) const {
    if constexpr (kMayHoldPrediction) {
#pragma unroll 1
      for (int k = holds_prediction ? arguments.num_looks : 0; k > 0; --k) {
        const Look look = k == 1 ? held : arguments.held_look(tensor, k - 1);
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          real_t& value = loaded.param.values[j];
          value = Rule::recover(value, state_of(loaded, j), look);
        }
      }
    }
  }

  // Predicts by the looks of a range.
  template <int kN>
  __device__ void look_on(const Arguments<Rule, real_t>& arguments, const Loaded<kN>& loaded,
                          int begin, int end, real_t (&values)[kN]) const {
#pragma unroll 1
    for (int k = begin; k < end; ++k) {
      const Look look = k == 0 ? row.look : arguments.look(tensor, k);
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        values[j] = Rule::predict(values[j], state_of(loaded, j), look);
      }
    }
  }
};

}  // namespace
}  // namespace wpadamw::cuda
