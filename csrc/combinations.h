// What is compiled of each rule: everything that is called is one of these combinations.
#pragma once

#include "dtype.h"
#include "float_types.h"
#include "operation.h"
#include "rule.h"

namespace wpadamw {

template <typename value_t>
constexpr DType kCodeOf = DType::kFloat32;
template <>
inline constexpr DType kCodeOf<bfloat16> = DType::kBFloat16;
template <>
inline constexpr DType kCodeOf<float16> = DType::kFloat16;
template <>
inline constexpr DType kCodeOf<double> = DType::kFloat64;

// Of parameters and their gradients.
template <typename of_params, typename of_grads>
struct Dtypes {
  using param_t = of_params;
  using grad_t = of_grads;
  using real_t = typename RealOf<param_t>::type;
  static constexpr bool kNeedsBackup = sizeof(param_t) < sizeof(real_t);  // it is the master weight
};

template <typename... pairs>
struct List {
  static constexpr int kSize = sizeof...(pairs);
  static constexpr DType kParams[] = {kCodeOf<typename pairs::param_t>...};
  static constexpr DType kGrads[] = {kCodeOf<typename pairs::grad_t>...};
};

// Gradients are of the parameters' dtype, or float32.
using Supported = List<Dtypes<float, float>,                                 //
                       Dtypes<bfloat16, bfloat16>, Dtypes<bfloat16, float>,  //
                       Dtypes<float16, float16>, Dtypes<float16, float>,     //
                       Dtypes<double, double>, Dtypes<double, float>>;

// Position in the list, or -1.
constexpr int position_of(DType param, DType grad) {
  for (int i = 0; i < Supported::kSize; ++i) {
    if (Supported::kParams[i] == param && Supported::kGrads[i] == grad) return i;
  }
  return -1;
}

// Whether true weights can come from there.
template <typename Rule, typename dtypes>
constexpr bool has_source(Source source) {
  return source == Source::kBackup || (kCanRecover<Rule> && !dtypes::kNeedsBackup);
}

template <typename Rule, typename dtypes>
constexpr bool is_compiled(Operation operation, Source source) {
  // A prediction starts from true weights. Where these are in the parameter, nothing is to restore.
  if (operation == Operation::kPredict && source == Source::kPrediction) return false;
  if (operation == Operation::kRestore && source == Source::kParam) return false;
  return kCanStep<Rule> && has_source<Rule, dtypes>(source);
}

// Only a step has gradients.
template <Operation kOperation, typename dtypes>
using DtypesOf = std::conditional_t<is_step(kOperation), dtypes,
                                    Dtypes<typename dtypes::param_t, typename dtypes::param_t>>;

// Elements of which terms are summed by halves; the sums of a tensor's chunks are added in order.
constexpr int kChunkNumel = 2048;

// What a step is tracked by, summed in the same order: squared distances of predictions from new
// weights, squared steps, and their products.
constexpr int kNumTracked = 3;

}  // namespace wpadamw
