// The codes by which Python names dtypes and rules.
#pragma once

namespace wpadamw {

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };
enum class RuleId : int;  // position in WPADAMW_FOR_EACH_RULE

constexpr int kMaxStates = 3;

}  // namespace wpadamw
