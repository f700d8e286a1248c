// The module wpadamw._C: addresses, sizes and codes in, no tensors. This folder is all that knows
// Python.
#include <pybind11/stl.h>

#include "../operation.h"
#include "bindings.h"
#include "checks.h"

namespace py = pybind11;

namespace wpadamw {
namespace {

[[noreturn]] void refuse_dict(size_t i, py::handle found) {
  throw py::type_error(Argument("dicts", i).text() + " must be a dict, got " +
                       Py_TYPE(found.ptr())->tp_name);
}

}  // namespace

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

namespace {

py::dict describe(const RuleInfo& rule) {
  using namespace py::literals;
  return py::dict("state"_a = rule.state, "hyper"_a = rule.hyper, "step"_a = rule.step,
                  "look"_a = rule.look, "num_terms"_a = rule.num_terms,
                  "can_recover"_a = rule.can_recover);
}

py::dict describe_rules() {
  py::dict by_name;
  for (const RuleInfo& rule : rules()) by_name[py::str(rule.name)] = describe(rule);
  return by_name;
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
  bind_standing(m);
  bind_tensors(m);
  m.def("holds", &holds, py::arg("dicts"), py::arg("values"));
  m.def("rules", &describe_rules);
#if defined(WPADAMW_CUDA)
  py::module_ cuda = m.def_submodule("cuda", "Kernels over addresses of device memory.");
  bind_cuda(cuda);
#endif
}
