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
  // A row has further numbers of an update behind the rule's own, see csrc/rule.h.
  int64_t step_width(int num_further) const {
    return static_cast<int64_t>(step.size()) + num_further;
  }
  int64_t row_width(int num_looks, int num_further) const {
    return step_width(num_further) + looks_width(num_looks);
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
