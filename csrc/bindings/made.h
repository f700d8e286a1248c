// Objects of Python without a C++ object. Where __init__ was left out, pybind11 hands methods
// memory that no constructor has seen; a second __init__ it ignores in silence.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace wpadamw {

template <typename bound_t>
bool is_made(pybind11::handle self) {
  namespace detail = pybind11::detail;
  auto* instance = reinterpret_cast<detail::instance*>(self.ptr());
  const auto* type = detail::get_type_info(typeid(bound_t));
  return instance->get_value_and_holder(type).holder_constructed();
}

template <typename bound_t>
void check_type(pybind11::handle self) {
  if (pybind11::isinstance<bound_t>(self)) return;
  const auto expected = pybind11::str(pybind11::type::of<bound_t>().attr("__name__"));
  const auto found = pybind11::str(pybind11::type::handle_of(self).attr("__name__"));
  throw pybind11::type_error("self must be a " + std::string(expected) + ", got " +
                             std::string(found));
}

// The C++ object of a method's `self`.
template <typename bound_t>
bound_t& made(const pybind11::object& self) {
  check_type<bound_t>(self);
  if (!is_made<bound_t>(self)) throw pybind11::type_error("__init__ must be called before methods");
  return self.cast<bound_t&>();
}

template <typename bound_t>
void refuse_second_init(pybind11::object type) {
  namespace py = pybind11;
  const py::object init = type.attr("__init__");
  const auto once = [init](const py::object& self, const py::args& args, const py::kwargs& kwargs) {
    check_type<bound_t>(self);
    if (is_made<bound_t>(self)) throw py::type_error("__init__ must be called once");
    init(self, *args, **kwargs);
  };
  // Under its own name pybind11 would take it for a constructor.
  const std::string doc = py::str(init.attr("__doc__"));
  type.attr("__init__") =
      py::cpp_function(once, py::name("init"), py::is_method(type), py::doc(doc.c_str()));
}

}  // namespace wpadamw
