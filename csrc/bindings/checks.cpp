#include "checks.h"

#include <algorithm>
#include <stdexcept>

namespace wpadamw {
namespace {

// nullptr: there is none of this code.
const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
    case DType::kFloat64: return "float64";
  }
  return nullptr;
}

bool is_code(DType found) { return name_of(found) != nullptr; }

bool is_code(Operation found) {
  switch (found) {
    case Operation::kStep:
    case Operation::kStepAndPredict:
    case Operation::kPredict:
    case Operation::kRestore: return true;
  }
  return false;
}

template <typename code_t>
void check_code(const char* name, const char* type, code_t found) {
  if (is_code(found)) return;
  refuse(name, std::string("be a known ") + type, std::to_string(static_cast<int>(found)));
}

}  // namespace

std::string Argument::text() const {
  return index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]";
}

void refuse(const Argument& argument, const std::string& constraint, const std::string& found) {
  throw std::invalid_argument(argument.text() + " must " + constraint + ", got " + found);
}

void check_size(const char* name, size_t found, size_t expected) {
  if (found == expected) return;
  refuse(name, "have " + std::to_string(expected) + " entries", std::to_string(found));
}

void refuse_range(const Argument& argument, int64_t found, int64_t least, int64_t most) {
  const std::string limit =
      found < least ? ">= " + std::to_string(least) : "<= " + std::to_string(most);
  refuse(argument, "be " + limit, std::to_string(found));
}

void check_code(const char* name, DType found) { check_code(name, "DType", found); }

void check_code(const char* name, Operation found) { check_code(name, "Operation", found); }

void check_grad_dtype(DType found, DType param_dtype) {
  check_code("grad_dtype", found);
  if (found == param_dtype || found == DType::kFloat32) return;
  const bool is_float32 = param_dtype == DType::kFloat32;
  const std::string own = is_float32 ? "" : std::string(name_of(param_dtype)) + " or ";
  refuse("grad_dtype", "be " + own + "float32", name_of(found));
}

size_t size_of(DType dtype) {
  if (dtype == DType::kFloat64) return sizeof(double);
  return dtype == DType::kFloat32 ? sizeof(float) : sizeof(uint16_t);
}

size_t real_size_of(DType param_dtype) { return std::max(size_of(param_dtype), sizeof(float)); }

void refuse_memory(const Argument& argument, const Memory& found) {
  const std::string address = std::to_string(found.address);
  if (!found.is_aligned()) {
    refuse(argument, "be a multiple of " + std::to_string(found.alignment), address);
  }
  const std::string num_bytes = std::to_string(found.num_bytes);
  refuse(argument, "be the address of at least " + num_bytes + " bytes", address);
}

size_t size_of(Format format, size_t real_size) {
  if (format == Format::kWhole) return real_size;
  return has_scales(format) ? sizeof(uint8_t) : sizeof(uint16_t);
}

void check_state(const RuleInfo& rule, bool has_averages, const Addresses& state,
                 const std::vector<Format>& formats, int64_t numel, size_t real_size) {
  check_size("state", state.size(), rule.state.size() + has_averages);
  for (size_t k = 0; k < state.size(); ++k) {
    const size_t size = size_of(formats.empty() ? Format::kWhole : formats[k], real_size);
    check_memory({"state", k}, {state[k], numel * static_cast<int64_t>(size), size});
  }
}

void check_storage(const Storage& storage, DType param_dtype, size_t num_tensors, int64_t numel,
                   bool is_noisy) {
  const bool is_half = storage.rest != 0 || storage.has_noisy_params;
  if (storage.formats.empty() && storage.scales.empty() && !is_half) return;
  check_size("formats", storage.formats.size(), num_tensors);
  check_size("scales", storage.scales.size(), num_tensors);
  if (param_dtype == DType::kFloat64) refuse("param_dtype", "be narrower", name_of(param_dtype));
  const int64_t num_scales = (numel + kFormatBlock - 1) / kFormatBlock;
  for (size_t k = 0; k < num_tensors; ++k) {
    check_range({"formats", k}, storage.formats[k], 0, kNumFormats - 1);
    const auto format = static_cast<Format>(storage.formats[k]);
    const bool needs_noise = wpadamw::is_noisy(format) || storage.has_noisy_params;
    if (needs_noise && !is_noisy) refuse("is_noisy", "be True", "False");
    const int64_t num_bytes = has_scales(format) ? num_scales * int64_t{sizeof(float)} : 0;
    check_memory({"scales", k}, {storage.scales[k], num_bytes, alignof(float)});
  }
  if (!is_half) return;
  if (param_dtype != DType::kBFloat16) refuse("param_dtype", "be bfloat16", name_of(param_dtype));
  const int64_t num_bytes = storage.rest == 0 ? 0 : numel * int64_t{sizeof(int16_t)};
  check_memory("rest", {storage.rest, num_bytes, alignof(int16_t)});
}

void check_sources(const RuleInfo& rule, DType param_dtype, bool has_weights, bool has_elements) {
  if (has_weights || !has_elements || !rule.can_step) return;
  if (size_of(param_dtype) < real_size_of(param_dtype)) {
    refuse("param_dtype", "be float32 or float64 without weights", name_of(param_dtype));
  }
  if (!rule.can_recover) {
    refuse("rule", "be one that recovers weights where there are none apart", rule.name);
  }
}

void check_weights(const Addresses& weights, const std::vector<int64_t>& numels, size_t size) {
  check_size("weights", weights.size(), numels.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    check_memory({"weights", i}, {weights[i], numels[i] * static_cast<int64_t>(size), size});
  }
}

void check_can_step(const RuleInfo& rule) {
  if (!rule.can_step) refuse("rule", "be one that moves weights", rule.name);
}

void check_has_terms(const RuleInfo& rule) {
  if (rule.num_terms == 0) refuse("rule", "be one with terms to sum", rule.name);
}

const double* check_rows(int64_t row_width, uintptr_t scalars, int64_t num_rows, int64_t most) {
  check_range("num_rows", num_rows, 1, most);
  const int64_t num_bytes = num_rows * row_width * int64_t{sizeof(double)};
  check_memory("scalars", {scalars, num_bytes, alignof(double)});
  return reinterpret_cast<const double*>(scalars);
}

int64_t check_spans(DType param_dtype, const Addresses& params, const std::vector<int64_t>& offsets,
                    const std::vector<int64_t>& numels) {
  check_size("offsets", offsets.size(), params.size());
  check_size("numels", numels.size(), params.size());
  const auto size = static_cast<int64_t>(size_of(param_dtype));
  // Every count of bytes is below 2^63, and a count of elements far below.
  const int64_t most = INT64_MAX / static_cast<int64_t>(real_size_of(param_dtype));
  int64_t total = 0, past = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    check_range({"numels", i}, numels[i], 0, most);
    check_range({"offsets", i}, offsets[i], 0, most - numels[i]);
    check_range("the sum of numels", total += numels[i], 0, most);
    check_memory({"params", i}, {params[i], numels[i] * size, static_cast<size_t>(size)});
    if (numels[i] > 0) past = std::max(past, offsets[i] + numels[i]);
  }
  return past;
}

}  // namespace wpadamw
