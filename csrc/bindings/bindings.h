// What the bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "../dtype.h"

namespace wpadamw {

struct RuleInfo {
  std::string name;
  int num_states;
};

// Every rule, at the position that is its RuleId.
const std::vector<RuleInfo>& rules();
RuleId rule_id(const std::string& name);
size_t num_states(RuleId rule);

void bind_cpu(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);
void bind_tensors(pybind11::module_& m);

}  // namespace wpadamw
