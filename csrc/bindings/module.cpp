// Addresses, sizes and codes in, no tensors. These bindings are all that knows Python.
#include "bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "../bucket.h"
#include "../cpu/bucket_kernels.h"
#include "../rules/rules.h"
#include "../scalars.h"

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
  if (found == rules().end()) throw std::invalid_argument("rule must be a known name, got " + name);
  return static_cast<RuleId>(found - rules().begin());
}

size_t num_states(RuleId rule) {
  return static_cast<size_t>(rules()[static_cast<size_t>(rule)].num_states);
}

void check_size(const char* name, size_t found, size_t expected) {
  if (found == expected) return;
  throw std::invalid_argument(std::string(name) + " must have " + std::to_string(expected) +
                              " entries, got " + std::to_string(found));
}

namespace {

using Addresses = std::vector<uintptr_t>;
using Sizes = std::vector<int64_t>;
using Rows = std::vector<int32_t>;

Bucket make_bucket(const std::string& rule, DType param_dtype, const Addresses& params,
                   const Sizes& offsets, const Sizes& numels, uintptr_t weight,
                   const Addresses& state) {
  Bucket bucket;
  bucket.rule = rule_id(rule);
  bucket.param_dtype = param_dtype;
  bucket.weight = reinterpret_cast<void*>(weight);
  check_size("state", state.size(), num_states(bucket.rule));
  check_size("offsets", offsets.size(), params.size());
  check_size("numels", numels.size(), params.size());
  for (size_t k = 0; k < state.size(); ++k) bucket.state[k] = reinterpret_cast<void*>(state[k]);
  bucket.spans.resize(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    bucket.spans[i].param = params[i];
    bucket.spans[i].offset = offsets[i];
    bucket.spans[i].numel = numels[i];
  }
  return bucket;
}

void check_rows(const char* name, const Rows& rows, int32_t least, size_t num_rows) {
  for (int32_t row : rows) {
    if (row < least || row >= static_cast<int32_t>(num_rows)) {
      throw std::invalid_argument(std::string(name) + " must name rows of scalars, got " +
                                  std::to_string(row));
    }
  }
}

// An empty list of rows stands for row 0 (rows) or for no row (last_rows) everywhere.
void set_rows(Bucket& bucket, const Rows& rows, const Rows& last_rows, size_t num_rows) {
  if (!rows.empty()) check_size("rows", rows.size(), bucket.spans.size());
  if (!last_rows.empty()) check_size("last_rows", last_rows.size(), bucket.spans.size());
  check_rows("rows", rows, 0, num_rows);
  check_rows("last_rows", last_rows, -1, num_rows);
  for (size_t i = 0; i < bucket.spans.size(); ++i) {
    bucket.spans[i].row = rows.empty() ? 0 : rows[i];
    bucket.spans[i].last_row = last_rows.empty() ? -1 : last_rows[i];
  }
}

void set_grads(Bucket& bucket, const Addresses& grads) {
  check_size("grads", grads.size(), bucket.spans.size());
  for (size_t i = 0; i < bucket.spans.size(); ++i) bucket.spans[i].grad = grads[i];
}

void run(Bucket& bucket, Operation operation, DType grad_dtype, std::vector<double> scalars,
         const Rows& rows, const Rows& last_rows, int num_threads, const char* instruction_set) {
  if (scalars.empty() || scalars.size() % kNumScalars != 0) {
    throw std::invalid_argument("scalars must be rows of " + std::to_string(kNumScalars) +
                                " numbers, got " + std::to_string(scalars.size()));
  }
  set_rows(bucket, rows, last_rows, scalars.size() / kNumScalars);
  const Call call{operation, grad_dtype, std::move(scalars), std::max(num_threads, 1)};
  const py::gil_scoped_release release;
  run_cpu(bucket, call, instruction_set);
}

// A step asks this of every tensor of its state. In Python it would take longer than the update of
// small tensors.
// Whether the values of the dicts are, in order, these very objects.
bool holds(const py::list& dicts, const py::list& values) {
  size_t i = 0;
  for (const py::handle dict : dicts) {
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

}  // namespace
}  // namespace wpadamw

PYBIND11_MODULE(_C, m) {
  using namespace wpadamw;
  m.doc() = "Kernels over raw addresses. wpadamw.backends checks what crosses this line.";

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

  py::class_<Bucket>(m, "Bucket", py::module_local())
      .def(py::init(&make_bucket), py::arg("rule"), py::arg("param_dtype"), py::arg("params"),
           py::arg("offsets"), py::arg("numels"), py::arg("weight"), py::arg("state"))
      .def("set_grads", &set_grads, py::arg("grads"))
      .def("run", &run, py::arg("operation"), py::arg("grad_dtype"), py::arg("scalars"),
           py::arg("rows"), py::arg("last_rows"), py::arg("num_threads"),
           py::arg("instruction_set") = nullptr);

  m.def("holds", &holds, py::arg("dicts"), py::arg("values"));
  m.def("instruction_sets", &instruction_sets);
  m.def("rule_names", &rule_names);
  m.def("scalar_names", &scalar_names);
#if defined(WPADAMW_CUDA)
  py::module_ cuda = m.def_submodule("cuda", "Kernels over addresses of device memory.");
  bind_cuda(cuda);
#endif
}
