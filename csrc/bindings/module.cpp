// The module wpadamw._C: addresses, sizes and codes in, no tensors. This folder is all that knows
// Python.
#include <pybind11/stl.h>

#include <algorithm>

#include "../operation.h"
#include "../rules/rules.h"
#include "../scalars.h"
#include "bindings.h"
#include "checks.h"

namespace py = pybind11;

namespace wpadamw {

const std::vector<RuleInfo>& rules() {
#define WPADAMW_RULE_INFO(Rule) {Rule::kName, Rule::kNumStates},
  static const std::vector<RuleInfo> all = {WPADAMW_FOR_EACH_RULE(WPADAMW_RULE_INFO)};
#undef WPADAMW_RULE_INFO
  return all;
}

RuleId rule_id(const std::string& name) {
  const auto found = std::find_if(rules().begin(), rules().end(),
                                  [&](const RuleInfo& rule) { return rule.name == name; });
  if (found == rules().end()) refuse("rule", "be a known name", name);
  return static_cast<RuleId>(found - rules().begin());
}

size_t num_states(RuleId rule) {
  return static_cast<size_t>(rules()[static_cast<size_t>(rule)].num_states);
}

namespace {

[[noreturn]] void refuse_dict(size_t i, py::handle found) {
  throw py::type_error(Argument("dicts", i).text() + " must be a dict, got " +
                       Py_TYPE(found.ptr())->tp_name);
}

// A step asks this of every tensor of its state. In Python it would take longer than the update of
// small tensors.
// Whether the values of the dicts are, in order, these very objects.
bool holds(const py::list& dicts, const py::list& values) {
  size_t i = 0, num_dicts = 0;
  for (const py::handle dict : dicts) {
    if (!PyDict_Check(dict.ptr())) refuse_dict(num_dicts, dict);
    ++num_dicts;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict.ptr(), &position, &key, &value)) {
      if (i == values.size() || PyList_GET_ITEM(values.ptr(), i) != value) return false;
      ++i;
    }
  }
  return i == values.size();
}

std::vector<std::string> scalar_names() { return {kScalarNames, kScalarNames + kNumScalars}; }

std::vector<std::string> rule_names() {
  std::vector<std::string> names;
  for (const RuleInfo& rule : rules()) names.push_back(rule.name);
  return names;
}

void bind_codes(py::module_& m) {
  // Local: several builds of this module may be loaded in one process.
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16)
      .value("float64", DType::kFloat64);
  py::enum_<Operation>(m, "Operation", py::module_local())
      .value("step", Operation::kStep)
      .value("step_and_predict", Operation::kStepAndPredict)
      .value("predict", Operation::kPredict)
      .value("restore", Operation::kRestore);
}

}  // namespace
}  // namespace wpadamw

PYBIND11_MODULE(_C, m) {
  using namespace wpadamw;
  m.doc() = "Kernels over raw addresses. What can be checked without reading memory is checked.";
  bind_codes(m);
  bind_cpu(m);
  bind_tensors(m);
  m.def("holds", &holds, py::arg("dicts"), py::arg("values"));
  m.def("rule_names", &rule_names);
  m.def("scalar_names", &scalar_names);
#if defined(WPADAMW_CUDA)
  py::module_ cuda = m.def_submodule("cuda", "Kernels over addresses of device memory.");
  bind_cuda(cuda);
#endif
}
