// What can be asked of tensors, for Python.
#include "tensors.h"

#include "bindings.h"
#include "made.h"

namespace wpadamw {
namespace {

// Whether two lists hold the same objects.
bool are_same(const py::list& left, const py::list& right) {
  if (left.size() != right.size()) return false;
  for (size_t i = 0; i < left.size(); ++i) {
    if (PyList_GET_ITEM(left.ptr(), i) != PyList_GET_ITEM(right.ptr(), i)) return false;
  }
  return true;
}

bool are_of(const py::object& self, const py::list& tensors) {
  return made<Layouts>(self).are_of(tensors);
}

py::object addresses_of(const py::object& self, const py::list& grads) {
  return made<Layouts>(self).addresses_of(grads);
}

py::list grads_of(const py::object& self, const py::list& params) {
  return made<Layouts>(self).grads_of(params);
}

std::vector<size_t> differing(const py::object& self, const py::list& tensors) {
  return made<Versions>(self).differing(tensors);
}

bool have_not_changed(const py::object& self, const py::list& tensors) {
  return made<Versions>(self).are_of(tensors);
}

void bind_versions(py::module_& m) {
  auto versions = py::class_<Versions>(m, "Versions", py::module_local());
  versions.def(py::init<const py::list&>(), py::arg("tensors"))
      .def("differing", &differing, py::arg("tensors"))
      .def("are_of", &have_not_changed, py::arg("tensors"))
      .def("raise_all", [](const py::object& self) { made<Versions>(self).raise(); })
      .def("doubt", [](const py::object& self, size_t i) { made<Versions>(self).doubt(i); },
           py::arg("i"));
  refuse_second_init<Versions>(versions);
}

}  // namespace

void bind_tensors(py::module_& m) {
  auto layouts = py::class_<Layouts>(m, "Layouts", py::module_local());
  layouts
      .def(py::init<const py::type&, const py::list&>(), py::arg("tensor_type"), py::arg("tensors"))
      .def("are_of", &are_of, py::arg("tensors"))
      .def("addresses_of", &addresses_of, py::arg("grads"))
      .def("grads_of", &grads_of, py::arg("params"));
  refuse_second_init<Layouts>(layouts);
  m.def("are_same", &are_same, py::arg("left"), py::arg("right"));
  bind_versions(m);
}

}  // namespace wpadamw
