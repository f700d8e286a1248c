// What the bindings ask of their arguments before anything is written. Each check names the
// argument and says what was found; std::invalid_argument is Python's ValueError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../dtype.h"
#include "../formats.h"
#include "../operation.h"
#include "bindings.h"

namespace wpadamw {

using Addresses = std::vector<uintptr_t>;

// The name of an argument, or of an entry of one: "params[3]".
struct Argument {
  const char* name;
  int64_t index = -1;

  Argument(const char* name) : name(name) {}
  Argument(const char* name, size_t i) : name(name), index(static_cast<int64_t>(i)) {}
  std::string text() const;
};

// "<argument> must <constraint>, got <found>"
[[noreturn]] void refuse(const Argument& argument, const std::string& constraint,
                         const std::string& found);

void check_size(const char* name, size_t found, size_t expected);
[[noreturn]] void refuse_range(const Argument& argument, int64_t found, int64_t least,
                               int64_t most);
inline void check_range(const Argument& argument, int64_t found, int64_t least, int64_t most) {
  if (found < least || found > most) refuse_range(argument, found, least, most);
}

// Python can make an enum's object from any number.
void check_code(const char* name, DType found);
void check_code(const char* name, Operation found);
// The parameters' own, or float32.
void check_grad_dtype(DType found, DType param_dtype);

size_t size_of(DType dtype);
// Of a number of the state.
size_t real_size_of(DType param_dtype);

// At which so many bytes can begin.
inline uintptr_t last_address(int64_t num_bytes) {
  return UINTPTR_MAX - static_cast<uintptr_t>(num_bytes);
}

// So many bytes at an address; none need no address.
struct Memory {
  uintptr_t address;
  int64_t num_bytes;
  size_t alignment;  // a power of 2

  bool is_aligned() const { return (address & (alignment - 1)) == 0; }
  bool is_possible() const {
    return num_bytes == 0 || (address != 0 && is_aligned() && address <= last_address(num_bytes));
  }
};

[[noreturn]] void refuse_memory(const Argument& argument, const Memory& found);
inline void check_memory(const Argument& argument, const Memory& found) {
  if (!found.is_possible()) refuse_memory(argument, found);
}

// The flat buffers of a bucket, one of each kind of state, and of averages. Without formats all are
// of the mathematics' dtype.
void check_state(const RuleInfo& rule, bool has_averages, const Addresses& state,
                 const std::vector<Format>& formats, int64_t numel, size_t real_size);

// How a bucket is stored where not everything is of the mathematics' dtype: the code of each format,
// the address of each one's scales (of `numel` elements), and that of the rest of the weights.
struct Storage {
  const std::vector<int>& formats;
  const Addresses& scales;
  uintptr_t rest;
  bool has_noisy_params;
};
void check_storage(const Storage& storage, DType param_dtype, size_t num_tensors, int64_t numel,
                   bool is_noisy);

template <typename bucket_t>
void store(bucket_t& bucket, const Storage& storage, int64_t numel, bool is_noisy) {
  check_storage(storage, bucket.param_dtype, bucket.state.size(), numel, is_noisy);
  for (const int format : storage.formats) bucket.formats.push_back(static_cast<Format>(format));
  for (const uintptr_t scales : storage.scales) {
    bucket.scales.push_back(reinterpret_cast<float*>(scales));
  }
  bucket.rest = reinterpret_cast<int16_t*>(storage.rest);
  bucket.has_noisy_params = storage.has_noisy_params;
}

// True weights apart from the parameters: what is narrower than its state needs them, and rules that
// cannot recover them do.
void check_sources(const RuleInfo& rule, DType param_dtype, bool has_weights, bool has_elements);
void check_weights(const Addresses& weights, const std::vector<int64_t>& numels, size_t size);

void check_can_step(const RuleInfo& rule);
void check_has_terms(const RuleInfo& rule);

// By how many looks one prediction may go.
constexpr int kMaxLooks = 1 << 20;

// Rows of scalars in the memory of the host.
const double* check_rows(int64_t row_width, uintptr_t scalars, int64_t num_rows, int64_t most);

// The spans of a bucket. Returns how many elements its flat buffers have at least.
int64_t check_spans(DType param_dtype, const Addresses& params, const std::vector<int64_t>& offsets,
                    const std::vector<int64_t>& numels);

}  // namespace wpadamw
