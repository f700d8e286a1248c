// The CUDA loop: predict, restore and step over a bucket, for every rule and dtype. One launch
// serves all tensors of a bucket, one block each chunk of one.
#include "../float_types.h"
#include "../rules/rules.h"
#include "check.h"
#include "launch.h"
#include "pack.h"

namespace wpadamw::cuda {
namespace {

// What a kernel reads of its bucket and call, in the dtype of the state.
template <typename real_t>
struct Arguments {
  // Address 0. The table holds addresses as numbers; as offsets from a kernel's argument the
  // compiler knows them for global memory, and needs no generic accesses.
  char* memory = nullptr;
  const Chunk* chunks;
  const uintptr_t* grads;
  int64_t num_tensors;
  real_t* weight;
  real_t* state[kMaxStates];
  const double* scalars;
  const int32_t* index;
  Scalars<real_t> row, last;
  bool holds_prediction;
  const float* found_inf;

  Arguments(const Bucket& bucket, const Call& call)
      : chunks(bucket.chunks),
        grads(bucket.grads),
        num_tensors(bucket.num_tensors),
        weight(static_cast<real_t*>(bucket.weight)),
        scalars(call.rows.scalars),
        index(call.rows.index),
        row(round_scalars<real_t>(call.rows.row)),
        last(round_scalars<real_t>(call.rows.last)),
        holds_prediction(call.rows.holds_prediction),
        found_inf(call.found_inf) {
    for (int k = 0; k < kMaxStates; ++k) state[k] = static_cast<real_t*>(bucket.state[k]);
  }

  __device__ Scalars<real_t> row_of(int32_t tensor) const {
    return scalars == nullptr ? row : at(index[tensor]);
  }
  __device__ bool holds_prediction_of(int32_t tensor) const {
    return scalars == nullptr ? holds_prediction : index[num_tensors + tensor] >= 0;
  }
  __device__ Scalars<real_t> last_of(int32_t tensor) const {
    return scalars == nullptr ? last : at(index[num_tensors + tensor]);
  }
  __device__ Scalars<real_t> at(int32_t i) const {
    return round_scalars<real_t>(scalars + int64_t{i} * kNumScalars);
  }
};

// One chunk: every pointer is at its first element.
template <typename Rule, typename param_t, typename grad_t, Operation kOperation, bool kHasBackup>
struct Elements {
  using real_t = typename RealOf<param_t>::type;
  static constexpr int kWidth = pack_width<param_t, grad_t>();
  static constexpr int kPacks = kElementsPerThread / kWidth;
  // What is predicted from are true weights.
  static constexpr bool kMayHoldPrediction = !kHasBackup && kOperation != Operation::kPredict;

  template <int kN>
  struct Loaded {
    Pack<param_t, kN> param;  // without a backup: what the parameter held
    Pack<grad_t, kN> grad;
    Pack<real_t, kN> weight;
    Pack<real_t, kN> state[Rule::kNumStates];
  };

  param_t* param;
  const grad_t* grad;
  real_t* weight;
  real_t* state[Rule::kNumStates];
  int numel;
  bool holds_prediction;
  Scalars<real_t> scalars, last;

  __device__ Elements(const Arguments<real_t>& arguments, const Chunk& chunk, uintptr_t grad_address)
      : param(reinterpret_cast<param_t*>(arguments.memory + chunk.param)),
        grad(reinterpret_cast<const grad_t*>(arguments.memory + grad_address) + chunk.begin),
        weight(arguments.weight + chunk.offset),
        numel(chunk.numel),
        holds_prediction(kMayHoldPrediction && arguments.holds_prediction_of(chunk.tensor)),
        scalars(arguments.row_of(chunk.tensor)) {
    if (kMayHoldPrediction && holds_prediction) last = arguments.last_of(chunk.tensor);
    for (int k = 0; k < Rule::kNumStates; ++k) state[k] = arguments.state[k] + chunk.offset;
  }

  template <int kN>
  __device__ void load(int i, Loaded<kN>& loaded) const {
    if constexpr (kHasBackup) loaded.weight.load(weight + i);
    if constexpr (!kHasBackup) loaded.param.load(param + i);
    if constexpr (is_step(kOperation)) loaded.grad.load(grad + i);
    if constexpr (!kHasBackup || kOperation != Operation::kRestore) {
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) loaded.state[k].load(state[k] + i);
    }
  }

  template <int kN>
  __device__ real_t true_weight(const Loaded<kN>& loaded, int j,
                                const typename Rule::template State<real_t>& values) const {
    if constexpr (kHasBackup) return loaded.weight.values[j];
    const real_t held = to_real(loaded.param.values[j]);
    if constexpr (kMayHoldPrediction) {
      if (holds_prediction) return recover_weight<Rule>(held, values, last);
    }
    return held;
  }

  template <int kN>
  __device__ void run_element(Loaded<kN>& loaded, int j) const {
    Element<Rule, real_t> element;
    for (int k = 0; k < Rule::kNumStates; ++k) element.state.at[k] = loaded.state[k].values[j];
    element.weight = true_weight(loaded, j, element.state);
    real_t gradient{};
    if constexpr (is_step(kOperation)) gradient = to_real(loaded.grad.values[j]);
    loaded.param.values[j] = Round<param_t>::from(apply<kOperation>(element, gradient, scalars));
    loaded.weight.values[j] = element.weight;
    for (int k = 0; k < Rule::kNumStates; ++k) loaded.state[k].values[j] = element.state.at[k];
  }

  template <int kN>
  __device__ void store(int i, const Loaded<kN>& loaded) const {
    loaded.param.store(param + i);
    if constexpr (is_step(kOperation)) {
      if constexpr (kHasBackup) loaded.weight.store(weight + i);
#pragma unroll
      for (int k = 0; k < Rule::kNumStates; ++k) loaded.state[k].store(state[k] + i);
    }
  }

  // All loads of a thread before its first use of one: they wait for memory together.
  __device__ void run_packs() const {
    Loaded<kWidth> loaded[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (i + kWidth <= numel) load(i, loaded[p]);
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (i + kWidth > numel) return;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) run_element(loaded[p], j);
      store(i, loaded[p]);
    }
  }

  __device__ void run_singly(int begin) const {
#pragma unroll 1
    for (int i = begin + static_cast<int>(threadIdx.x); i < numel; i += kThreads) {
      Loaded<1> loaded;
      load(i, loaded);
      run_element(loaded, 0);
      store(i, loaded);
    }
  }

  // The state is always aligned: tensors and chunks begin at multiples of whole packs there.
  __device__ void run() const {
    const bool has_packs = is_aligned(param) && (!is_step(kOperation) || is_aligned(grad));
    if (has_packs) run_packs();
    run_singly(has_packs ? numel / kWidth * kWidth : 0);
  }
};

// Blocks that a multiprocessor must have room for: so many that others load while one computes, so
// few that no register spills.
template <typename Rule, typename real_t>
constexpr int kMinBlocks = sizeof(real_t) == 4 ? 6 - Rule::kNumStates : 1;

template <typename Rule, typename param_t, typename grad_t, Operation kOperation, bool kHasBackup>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Rule, typename RealOf<param_t>::type>)
    bucket_kernel(const Arguments<typename RealOf<param_t>::type> arguments) {
  if (arguments.found_inf != nullptr && *arguments.found_inf != 0.0f) return;
  const Chunk chunk = arguments.chunks[blockIdx.x];
  uintptr_t grad = 0;
  if constexpr (is_step(kOperation)) {
    grad = arguments.grads[chunk.tensor];
    if (grad == 0) return;
  }
  Elements<Rule, param_t, grad_t, kOperation, kHasBackup>(arguments, chunk, grad).run();
}

template <typename Rule, typename param_t, typename grad_t, Operation kOperation, bool kHasBackup>
void launch(const Bucket& bucket, const Call& call) {
  const cudaLaunchConfig_t config = launch_config(bucket.num_chunks, kThreads, call.stream);
  const Arguments<typename RealOf<param_t>::type> arguments(bucket, call);
  check(cudaLaunchKernelEx(&config, bucket_kernel<Rule, param_t, grad_t, kOperation, kHasBackup>,
                           arguments),
        "launch of bucket_kernel");
}

template <typename Rule, typename param_t, typename grad_t, Operation kOperation>
void run_source(const Bucket& bucket, const Call& call) {
  // Parameters narrower than their state always have a backup: it is their master weight.
  if constexpr (sizeof(param_t) >= sizeof(typename RealOf<param_t>::type)) {
    if (bucket.weight == nullptr) return launch<Rule, param_t, grad_t, kOperation, false>(bucket, call);
  }
  launch<Rule, param_t, grad_t, kOperation, true>(bucket, call);
}

template <typename Rule, typename param_t, typename grad_t>
void run_step(const Bucket& bucket, const Call& call) {
  if (call.operation == Operation::kStep) {
    return run_source<Rule, param_t, grad_t, Operation::kStep>(bucket, call);
  }
  run_source<Rule, param_t, grad_t, Operation::kStepAndPredict>(bucket, call);
}

// Gradients are of the parameter's dtype, or float32.
template <typename Rule, typename param_t>
void run_operation(const Bucket& bucket, const Call& call) {
  if (call.operation == Operation::kPredict) {
    return run_source<Rule, param_t, param_t, Operation::kPredict>(bucket, call);
  }
  if (call.operation == Operation::kRestore) {
    return run_source<Rule, param_t, param_t, Operation::kRestore>(bucket, call);
  }
  if (call.grad_dtype == bucket.param_dtype) return run_step<Rule, param_t, param_t>(bucket, call);
  run_step<Rule, param_t, float>(bucket, call);
}

template <typename Rule>
void run_dtype(const Bucket& bucket, const Call& call) {
  switch (bucket.param_dtype) {
    case DType::kFloat32: return run_operation<Rule, float>(bucket, call);
    case DType::kBFloat16: return run_operation<Rule, bfloat16>(bucket, call);
    case DType::kFloat16: return run_operation<Rule, float16>(bucket, call);
    case DType::kFloat64: return run_operation<Rule, double>(bucket, call);
  }
}

}  // namespace

void run(const Bucket& bucket, const Call& call) {
  if (bucket.num_chunks == 0) return;
  int id = 0;
#define WPADAMW_RUN_IF_CHOSEN(Rule) \
  if (static_cast<int>(bucket.rule) == id++) return run_dtype<Rule>(bucket, call);
  WPADAMW_FOR_EACH_RULE(WPADAMW_RUN_IF_CHOSEN)
#undef WPADAMW_RUN_IF_CHOSEN
}

std::string why_not() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return std::string("no CUDA device: ") + cudaGetErrorString(status);
  if (count == 0) return "no CUDA device";
  cudaFuncAttributes attributes;
  const cudaError_t has_image = cudaFuncGetAttributes(
      &attributes, bucket_kernel<AdamW, float, float, Operation::kStep, true>);
  return has_image == cudaSuccess ? "" : cudaGetErrorString(has_image);
}

}  // namespace wpadamw::cuda
