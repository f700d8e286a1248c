// The codes by which Python names dtypes.
#pragma once

namespace wpadamw {

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

}  // namespace wpadamw
