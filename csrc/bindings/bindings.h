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

// Throws std::invalid_argument unless the sizes are equal.
void check_size(const char* name, size_t found, size_t expected);

void bind_cuda(pybind11::module_& m);

}  // namespace wpadamw
