// What update rules are written with, and what can be asked of one at compile time.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "host_device.h"

namespace wpadamw {

// Of the fields of a row, or of the tensors of a state, in order.
template <size_t n>
using Names = std::array<const char*, n>;

// One number of each tensor of a state, or of each term of a sum.
template <typename value_t, int n>
struct Values {
  value_t at[n > 0 ? n : 1];  // there are no arrays of no elements
};

// The scalars of an operation. Both parts hold numbers of one type and nothing else.
template <typename step_t, typename look_t>
struct Row {
  step_t step;
  look_t look;
};

template <typename Rule, typename real_t>
using RowOf = Row<typename Rule::template Step<real_t>, typename Rule::template Look<real_t>>;

// Numbers in a part of a row.
template <typename part_t, typename real_t>
constexpr int kNumFields = std::is_empty_v<part_t> ? 0 : int{sizeof(part_t) / sizeof(real_t)};

template <typename Rule>
constexpr int kNumStep = kNumFields<typename Rule::template Step<double>, double>;
template <typename Rule>
constexpr int kNumLook = kNumFields<typename Rule::template Look<double>, double>;

// A part of a row of float64 numbers, each rounded to the dtype of the state.
template <typename part_t, typename real_t>
WPADAMW_HOST_DEVICE part_t round_part(const double* numbers) {
  part_t part{};
  if constexpr (!std::is_empty_v<part_t>) {
    real_t rounded[sizeof(part_t) / sizeof(real_t)];
    for (int k = 0; k < kNumFields<part_t, real_t>; ++k) rounded[k] = real_t(numbers[k]);
    std::memcpy(&part, rounded, sizeof part);
  }
  return part;
}

// One of several that lie side by side.
template <typename Rule, typename real_t>
WPADAMW_HOST_DEVICE auto round_nth_look(const double* looks, int n) {
  return round_part<typename Rule::template Look<real_t>, real_t>(looks + n * kNumLook<Rule>);
}

// The looks of a row begin behind its step and the further numbers of an update: the share of
// a weight in its average where there are some, and the count where rounding needs noise.
template <typename Rule>
WPADAMW_HOST_DEVICE const double* looks_of(const double* row, int num_further) {
  return row + kNumStep<Rule> + num_further;
}

template <typename Rule, typename real_t>
WPADAMW_HOST_DEVICE RowOf<Rule, real_t> round_row(const double* row, int num_further) {
  return {round_part<typename Rule::template Step<real_t>, real_t>(row),
          round_nth_look<Rule, real_t>(looks_of<Rule>(row, num_further), 0)};
}

// An average after a step, see wpadamw/rules/averaged.py.
template <typename real_t>
WPADAMW_HOST_DEVICE real_t moved_average(real_t average, real_t weight, real_t share) {
  return average + (weight - average) * share;
}

// Whether a rule has an update; one without has sums alone.
template <typename Rule, typename = void>
constexpr bool kCanStep = false;
template <typename Rule>
constexpr bool kCanStep<Rule, std::void_t<decltype(&Rule::template step<float>)>> = true;

// Whether a rule can tell a true weight from the predicted one.
template <typename Rule, typename = void>
constexpr bool kCanRecover = false;
template <typename Rule>
constexpr bool kCanRecover<Rule, std::void_t<decltype(&Rule::template recover<float>)>> = true;

// base^exponent by repeated squaring.
WPADAMW_HOST_DEVICE double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// A NaN on either side wins, as in torch.maximum.
template <typename real_t>
WPADAMW_HOST_DEVICE real_t maximum(real_t a, real_t b) {
  return (a > b || a != a) ? a : b;
}

}  // namespace wpadamw
