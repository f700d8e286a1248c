// What tensors are at this moment: address, dtype, shape, strides and device, of a whole list in one
// call, and how often each has been written to. Asked attribute by attribute in Python it would take
// longer than the update of small tensors. wpadamw/tensors.py is the same in Python, for versions of
// torch without the interface.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "checks.h"
#include "dlpack.h"

namespace wpadamw {

namespace py = pybind11;

inline bool operator==(dlpack::DataType a, dlpack::DataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

// No memory lies below: a storage that was freed leaves its tensor an offset from address 0.
constexpr uintptr_t kLeastAddress = uintptr_t{1} << 20;

inline uintptr_t address_of(const dlpack::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
}

inline py::object interned(const char* text) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text));
}

inline py::object attribute(py::handle object, const py::object& name) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name.ptr());
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

// How often each tensor of a list had been written to when it was looked at.
class Versions {
 public:
  explicit Versions(const py::list& tensors) : name_(interned("_version")) {
    for (const py::handle tensor : tensors) known_.push_back(version_of(tensor));
  }

  // Others than these have been written to since then.
  std::vector<size_t> differing(const py::list& tensors) const {
    check_size("tensors", tensors.size(), known_.size());
    std::vector<size_t> found;
    for (size_t i = 0; i < known_.size(); ++i) {
      if (version_of(tensors[i]) != known_[i]) found.push_back(i);
    }
    return found;
  }

  bool are_of(const py::list& tensors) const {
    if (tensors.size() != known_.size()) return false;
    for (size_t i = 0; i < known_.size(); ++i) {
      if (!is_of(i, tensors[i])) return false;
    }
    return true;
  }

  size_t size() const { return known_.size(); }
  bool is_of(size_t i, py::handle tensor) const { return version_of(tensor) == known_[i]; }

  // After one write to each of them.
  void raise() {
    for (int64_t& version : known_) ++version;
  }

  // Has one of them found to be written to.
  void doubt(size_t i) {
    check_range("i", static_cast<int64_t>(i), 0, static_cast<int64_t>(known_.size()) - 1);
    known_[i] = -1;
  }

 private:
  int64_t version_of(py::handle tensor) const {
    const int64_t version = PyLong_AsLongLong(attribute(tensor, name_).ptr());
    if (version == -1 && PyErr_Occurred()) throw py::error_already_set();
    return version;
  }

  py::object name_;
  std::vector<int64_t> known_;
};

// How a tensor lies in memory. The sizes and strides of all tensors lie one after the other: looked at
// in every step, they should be found in few cache lines.
struct Layout {
  uintptr_t address = 0;
  dlpack::Device device{};
  dlpack::DataType dtype{};
  int32_t ndim = 0;
  bool is_empty = false;
  size_t first = 0;  // of its sizes in the list of all, followed by its strides
};

// The layouts of a list of tensors, as they were at construction.
class Layouts {
 public:
  Layouts(const py::type& tensor_type, const py::list& tensors)
      : tensor_type_(tensor_type), is_neg_(tensor_type.attr("is_neg")), grad_(interned("grad")) {
    const py::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
    api_ = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api_ == nullptr) throw py::error_already_set();
    if (api_->version.major != dlpack::kMajorVersion || api_->borrow == nullptr) {
      throw std::invalid_argument("tensor_type must offer version 1 of DLPack's C exchange interface");
    }
    for (const py::handle tensor : tensors) add(borrow(tensor));
  }

  // Whether tensors are where and what the others were.
  bool are_of(const py::list& tensors) const {
    if (tensors.size() != layouts_.size()) return false;
    for (size_t i = 0; i < layouts_.size(); ++i) {
      if (!is_at(i, tensors[i])) return false;
    }
    return true;
  }

  // Whether a tensor is where and what number i was.
  bool is_at(size_t i, py::handle tensor) const {
    const dlpack::Tensor found = borrow(tensor);
    const Layout& expected = layouts_[i];
    return address_of(found) == expected.address && found.dtype == expected.dtype &&
           lies_like(found, expected);
  }

  struct Gradients {
    std::vector<uintptr_t> addresses;  // 0 where there is none
    size_t count = 0;
    bool are_float32 = false;  // instead of the tensors' dtype
  };

  // Where gradients of the tensors lie, None where there is none. Nothing if one of them must be
  // looked at more closely: it is no plain tensor, or does not lie like its tensor, or their dtypes
  // differ.
  std::optional<Gradients> find(const py::list& grads) const {
    check_size("grads", grads.size(), layouts_.size());
    Gradients found;
    found.addresses.resize(layouts_.size());
    std::optional<dlpack::DataType> dtype;
    for (size_t i = 0; i < layouts_.size(); ++i) {
      if (!grads[i].is_none() && !take(i, grads[i], dtype, found)) return {};
    }
    found.are_float32 = is_float32(dtype);
    return found;
  }

  // The same for parameters that have one each and are where and what the tensors were, and whose
  // versions are known: one after the other, since what lies around a tensor is far from the next.
  std::optional<Gradients> find_all(const py::list& params, const Versions& versions,
                                    py::list& grads) const {
    if (params.size() != layouts_.size() || versions.size() != layouts_.size()) return {};
    Gradients found;
    found.addresses.resize(layouts_.size());
    std::optional<dlpack::DataType> dtype;
    for (size_t i = 0; i < layouts_.size(); ++i) {
      if (!is_at(i, params[i]) || !versions.is_of(i, params[i])) return {};
      const py::object grad = attribute(params[i], grad_);
      if (grad.is_none() || !take(i, grad, dtype, found)) return {};
      grads.append(grad);
    }
    found.are_float32 = is_float32(dtype);
    return found;
  }

  // The same for Python: addresses, which tensors have a gradient (None: all), whether they are
  // float32; or None.
  py::object addresses_of(const py::list& grads) {
    std::optional<Gradients> found = find(grads);
    if (!found) return py::none();
    if (!addresses_list_ || found->addresses != addresses_) {
      addresses_ = std::move(found->addresses);
      addresses_list_ = py::cast(addresses_);
    }
    const py::object has_grad = found->count == layouts_.size() ? py::none() : presence(grads);
    return py::make_tuple(addresses_list_, has_grad, found->are_float32);
  }

  // The gradients of parameters.
  py::list grads_of(const py::list& params) const {
    py::list grads(params.size());
    for (size_t i = 0; i < params.size(); ++i) {
      PyList_SET_ITEM(grads.ptr(), i, attribute(params[i], grad_).release().ptr());
    }
    return grads;
  }

 private:
  bool take(size_t i, py::handle grad, std::optional<dlpack::DataType>& dtype,
            Gradients& found) const {
    const std::optional<dlpack::Tensor> tensor = plain(grad, layouts_[i]);
    if (!tensor || (dtype && !(*dtype == tensor->dtype))) return false;
    dtype = tensor->dtype;
    found.addresses[i] = address_of(*tensor);
    ++found.count;
    return true;
  }

  bool is_float32(const std::optional<dlpack::DataType>& dtype) const {
    return dtype && !layouts_.empty() && !(*dtype == layouts_[0].dtype);
  }

  void add(const dlpack::Tensor& tensor) {
    Layout layout{address_of(tensor), tensor.device, tensor.dtype, tensor.ndim, false, dims_.size()};
    for (int32_t i = 0; i < tensor.ndim; ++i) layout.is_empty |= tensor.shape[i] == 0;
    dims_.insert(dims_.end(), tensor.shape, tensor.shape + tensor.ndim);
    dims_.insert(dims_.end(), tensor.strides, tensor.strides + tensor.ndim);
    layouts_.push_back(layout);
  }

  // Strides of dimensions of one element say nothing.
  bool lies_like(const dlpack::Tensor& tensor, const Layout& like) const {
    if (tensor.device.type != like.device.type || tensor.device.id != like.device.id) return false;
    if (tensor.ndim != like.ndim) return false;
    const int64_t* shape = dims_.data() + like.first;
    const int64_t* strides = shape + like.ndim;
    for (int32_t i = 0; i < like.ndim; ++i) {
      if (tensor.shape[i] != shape[i]) return false;
      if (tensor.strides[i] != strides[i] && shape[i] > 1 && !like.is_empty) return false;
    }
    return true;
  }

  dlpack::Tensor borrow(py::handle tensor) const {
    if (!PyObject_TypeCheck(tensor.ptr(), reinterpret_cast<PyTypeObject*>(tensor_type_.ptr()))) {
      throw py::type_error("tensors must be tensors");
    }
    dlpack::Tensor found;
    if (api_->borrow(tensor.ptr(), &found) != 0) throw py::error_already_set();
    return found;
  }

  static py::object presence(const py::list& grads) {
    py::list has_grad;
    for (const py::handle grad : grads) has_grad.append(!grad.is_none());
    return has_grad;
  }

  std::optional<dlpack::Tensor> plain(py::handle grad, const Layout& like) const {
    // A subclass may keep its numbers elsewhere.
    if (reinterpret_cast<PyObject*>(Py_TYPE(grad.ptr())) != tensor_type_.ptr()) return {};
    dlpack::Tensor found;
    if (api_->borrow(grad.ptr(), &found) != 0) {
      PyErr_Clear();
      return {};
    }
    if (!(found.dtype == like.dtype) && !(found.dtype == dlpack::kFloat32)) return {};
    if (!lies_like(found, like)) return {};
    if (address_of(found) < kLeastAddress && !like.is_empty) return {};
    if (address_of(found) % (found.dtype.bits / 8) != 0) return {};
    // DLPack does not tell of numbers that wait to be negated.
    const auto is_neg = py::reinterpret_steal<py::object>(
        PyObject_CallFunctionObjArgs(is_neg_.ptr(), grad.ptr(), nullptr));
    if (!is_neg) throw py::error_already_set();
    if (is_neg.ptr() != Py_False) return {};
    return found;
  }

  py::object tensor_type_, is_neg_, grad_;
  const dlpack::ExchangeApi* api_;
  std::vector<Layout> layouts_;
  std::vector<int64_t> dims_;
  std::vector<uintptr_t> addresses_;
  py::object addresses_list_;
};

}  // namespace wpadamw
