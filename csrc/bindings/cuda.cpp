// The CUDA kernels, over addresses of device memory and a stream.
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "../cuda/launch.h"
#include "bindings.h"

namespace py = pybind11;

namespace wpadamw {
namespace {

template <typename pointee_t>
pointee_t* pointer(uintptr_t address) {
  return reinterpret_cast<pointee_t*>(address);
}

cuda::Bucket make_bucket(const std::string& rule, DType param_dtype, uintptr_t chunks,
                         int64_t num_chunks, int64_t num_tensors, uintptr_t grads, uintptr_t weight,
                         const std::vector<uintptr_t>& state) {
  cuda::Bucket bucket;
  bucket.rule = rule_id(rule);
  bucket.param_dtype = param_dtype;
  bucket.chunks = pointer<const cuda::Chunk>(chunks);
  bucket.num_chunks = num_chunks;
  bucket.num_tensors = num_tensors;
  bucket.grads = pointer<const uintptr_t>(grads);
  bucket.weight = pointer<void>(weight);
  check_size("state", state.size(), num_states(bucket.rule));
  std::transform(state.begin(), state.end(), bucket.state, pointer<void>);
  return bucket;
}

void copy_row(const char* name, const std::vector<double>& row, double* to) {
  check_size(name, row.size(), kNumScalars);
  std::copy(row.begin(), row.end(), to);
}

// With one row for all tensors; an empty `last`: the parameters hold their true weights.
void run_row(const cuda::Bucket& bucket, Operation operation, DType grad_dtype,
             const std::vector<double>& row, const std::vector<double>& last, uintptr_t stream) {
  cuda::Call call;
  call.operation = operation;
  call.grad_dtype = grad_dtype;
  copy_row("row", row, call.rows.row);
  call.rows.holds_prediction = !last.empty();
  if (!last.empty()) copy_row("last", last, call.rows.last);
  call.stream = pointer<void>(stream);
  cuda::run(bucket, call);
}

// With a row per tensor, in device memory.
void run_rows(const cuda::Bucket& bucket, Operation operation, DType grad_dtype, uintptr_t scalars,
              uintptr_t index, uintptr_t found_inf, uintptr_t stream) {
  cuda::Call call;
  call.operation = operation;
  call.grad_dtype = grad_dtype;
  call.rows.scalars = pointer<const double>(scalars);
  call.rows.index = pointer<const int32_t>(index);
  call.found_inf = pointer<const float>(found_inf);
  call.stream = pointer<void>(stream);
  cuda::run(bucket, call);
}

void advance(int64_t num_tensors, uintptr_t steps, uintptr_t predictions, uintptr_t options,
             uintptr_t has_grad, uintptr_t scalars, uintptr_t index, Operation operation,
             uintptr_t found_inf, uintptr_t stream) {
  cuda::Columns columns;
  columns.num_tensors = num_tensors;
  columns.steps = pointer<float>(steps);
  columns.predictions = pointer<Prediction>(predictions);
  columns.options = pointer<const StepOptions>(options);
  columns.has_grad = pointer<const bool>(has_grad);
  columns.found_inf = pointer<const float>(found_inf);
  columns.scalars = pointer<Scalars<double>>(scalars);
  columns.index = pointer<int32_t>(index);
  cuda::advance(columns, operation, pointer<void>(stream));
}

}  // namespace

void bind_cuda(py::module_& m) {
  py::class_<cuda::Bucket>(m, "Bucket", py::module_local())
      .def(py::init(&make_bucket), py::arg("rule"), py::arg("param_dtype"), py::arg("chunks"),
           py::arg("num_chunks"), py::arg("num_tensors"), py::arg("grads"), py::arg("weight"),
           py::arg("state"))
      .def("run_row", &run_row, py::arg("operation"), py::arg("grad_dtype"), py::arg("row"),
           py::arg("last"), py::arg("stream"))
      .def("run_rows", &run_rows, py::arg("operation"), py::arg("grad_dtype"), py::arg("scalars"),
           py::arg("index"), py::arg("found_inf"), py::arg("stream"));
  m.def("advance", &advance, py::arg("num_tensors"), py::arg("steps"), py::arg("predictions"),
        py::arg("options"), py::arg("has_grad"), py::arg("scalars"), py::arg("index"),
        py::arg("operation"), py::arg("found_inf"), py::arg("stream"));
  m.def("why_not", &cuda::why_not);
  m.attr("chunk_numel") = cuda::kChunkNumel;
}

}  // namespace wpadamw
