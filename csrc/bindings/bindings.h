// What the bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "../dtype.h"

namespace wpadamw {

struct RuleInfo {
  std::string name;  // that of its files
  std::vector<std::string> state, hyper, step, look;
  int num_terms = 0;
  bool can_step = false;
  bool can_recover = false;

  int64_t looks_width(int num_looks) const {
    return num_looks * static_cast<int64_t>(look.size());
  }
  // With averages a row has the share of a weight in them, too.
  int64_t step_width(bool has_averages) const {
    return static_cast<int64_t>(step.size()) + has_averages;
  }
  int64_t row_width(int num_looks, bool has_averages) const {
    return step_width(has_averages) + looks_width(num_looks);
  }
  int64_t record_width(int num_looks) const { return 1 + looks_width(num_looks); }
};

// Every rule; kernels are found by the same position.
const std::vector<RuleInfo>& rules();
size_t rule_id(const std::string& name);

void bind_cpu(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);
void bind_standing(pybind11::module_& m);
void bind_tensors(pybind11::module_& m);

}  // namespace wpadamw
