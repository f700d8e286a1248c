// The CUDA kernels, over addresses of device memory and a stream.
#include <pybind11/stl.h>

#include <algorithm>

#include "../cuda/launch.h"
#include "bindings.h"
#include "checks.h"
#include "made.h"

namespace py = pybind11;

namespace wpadamw {
namespace {

constexpr int64_t kMaxBlocks = INT32_MAX;        // of a launch
constexpr int64_t kMaxTensors = INT32_MAX;       // of a bucket: chunks name them by an int32
constexpr int64_t kMaxColumns = kMaxTensors / 2;  // an int32 names two rows for each

template <typename pointee_t>
pointee_t* pointer(uintptr_t address) {
  return reinterpret_cast<pointee_t*>(address);
}

// The address of an array of so many; none need no address.
template <typename pointee_t>
pointee_t* array(const char* name, uintptr_t address, int64_t count) {
  check_memory(name, {address, count * int64_t{sizeof(pointee_t)}, alignof(pointee_t)});
  return pointer<pointee_t>(address);
}

const float* found_inf_or_null(uintptr_t address) {
  return address == 0 ? nullptr : array<const float>("found_inf", address, 1);
}

struct BoundBucket : cuda::Bucket {
  // Launches: an interrupted caller finds out whether its own was one of them.
  int64_t completed = 0;
  int64_t advanced = 0;
};

BoundBucket make_bucket(const std::string& rule, DType param_dtype, uintptr_t chunks,
                        int64_t num_chunks, int64_t num_tensors, uintptr_t grads, uintptr_t weight,
                        const Addresses& state) {
  BoundBucket bucket;
  bucket.rule = rule_id(rule);
  check_code("param_dtype", param_dtype);
  check_size("state", state.size(), num_states(bucket.rule));
  const bool has_elements = num_chunks > 0;
  check_range("num_chunks", num_chunks, 0, kMaxBlocks);
  check_range("num_tensors", num_tensors, has_elements, kMaxTensors);
  // How large they are stands in device memory: at least one access.
  check_flat(param_dtype, weight, state, has_elements * cuda::kAccessBytes, cuda::kAccessBytes);
  bucket.param_dtype = param_dtype;
  bucket.chunks = array<const cuda::Chunk>("chunks", chunks, num_chunks);
  bucket.num_chunks = num_chunks;
  bucket.num_tensors = num_tensors;
  bucket.grads = array<const uintptr_t>("grads", grads, has_elements ? num_tensors : 0);
  bucket.weight = pointer<void>(weight);
  std::transform(state.begin(), state.end(), bucket.state, pointer<void>);
  return bucket;
}

void copy_row(const char* name, const std::vector<double>& row, double* to) {
  check_size(name, row.size(), kNumScalars);
  std::copy(row.begin(), row.end(), to);
}

cuda::Call make_call(const cuda::Bucket& bucket, Operation operation, DType grad_dtype,
                     uintptr_t stream) {
  check_code("operation", operation);
  check_grad_dtype(grad_dtype, bucket.param_dtype);
  cuda::Call call;
  call.operation = operation;
  call.grad_dtype = grad_dtype;
  call.stream = pointer<void>(stream);
  return call;
}

// With one row for all tensors; an empty `last`: the parameters hold their true weights.
void run_row(const py::object& self, Operation operation, DType grad_dtype,
             const std::vector<double>& row, const std::vector<double>& last, uintptr_t stream) {
  auto& bucket = made<BoundBucket>(self);
  cuda::Call call = make_call(bucket, operation, grad_dtype, stream);
  copy_row("row", row, call.rows.row);
  call.rows.holds_prediction = !last.empty();
  if (!last.empty()) copy_row("last", last, call.rows.last);
  cuda::run(bucket, call);
  ++bucket.completed;
}

// With a row per tensor, in device memory.
void run_rows(const py::object& self, Operation operation, DType grad_dtype, uintptr_t scalars,
              uintptr_t index, uintptr_t found_inf, uintptr_t stream) {
  auto& bucket = made<BoundBucket>(self);
  cuda::Call call = make_call(bucket, operation, grad_dtype, stream);
  const int64_t num_tensors = bucket.num_chunks > 0 ? bucket.num_tensors : 0;
  call.rows.scalars = array<const double>("scalars", scalars, num_tensors > 0 ? kNumScalars : 0);
  call.rows.index = array<const int32_t>("index", index, 2 * num_tensors);
  call.found_inf = found_inf_or_null(found_inf);
  cuda::run(bucket, call);
  ++bucket.completed;
}

void advance(const py::object& self, int64_t num_tensors, uintptr_t steps, uintptr_t predictions, uintptr_t options,
             uintptr_t has_grad, uintptr_t scalars, uintptr_t index, Operation operation,
             uintptr_t found_inf, uintptr_t stream) {
  auto& bucket = made<BoundBucket>(self);
  check_range("num_tensors", num_tensors, 0, kMaxColumns);
  check_code("operation", operation);
  cuda::Columns columns;
  columns.num_tensors = num_tensors;
  columns.steps = array<float>("steps", steps, num_tensors);
  columns.predictions = array<Prediction>("predictions", predictions, num_tensors);
  columns.options = array<const StepOptions>("options", options, num_tensors > 0);
  columns.has_grad = array<const bool>("has_grad", has_grad, num_tensors);
  columns.found_inf = found_inf_or_null(found_inf);
  columns.scalars = array<Scalars<double>>("scalars", scalars, 2 * num_tensors);
  columns.index = array<int32_t>("index", index, 2 * num_tensors);
  cuda::advance(columns, operation, pointer<void>(stream));
  ++bucket.advanced;
}

int64_t completed(const py::object& self) { return made<BoundBucket>(self).completed; }
int64_t advanced(const py::object& self) { return made<BoundBucket>(self).advanced; }

}  // namespace

void bind_cuda(py::module_& m) {
  auto bucket = py::class_<BoundBucket>(m, "Bucket", py::module_local());
  bucket
      .def(py::init(&make_bucket), py::arg("rule"), py::arg("param_dtype"), py::arg("chunks"),
           py::arg("num_chunks"), py::arg("num_tensors"), py::arg("grads"), py::arg("weight"),
           py::arg("state"))
      .def("run_row", &run_row, py::arg("operation"), py::arg("grad_dtype"), py::arg("row"),
           py::arg("last"), py::arg("stream"))
      .def("run_rows", &run_rows, py::arg("operation"), py::arg("grad_dtype"), py::arg("scalars"),
           py::arg("index"), py::arg("found_inf"), py::arg("stream"))
      .def("advance", &advance, py::arg("num_tensors"), py::arg("steps"), py::arg("predictions"),
           py::arg("options"), py::arg("has_grad"), py::arg("scalars"), py::arg("index"),
           py::arg("operation"), py::arg("found_inf"), py::arg("stream"))
      .def_property_readonly("completed", &completed)
      .def_property_readonly("advanced", &advanced);
  refuse_second_init<BoundBucket>(bucket);
  m.def("why_not", &cuda::why_not);
  m.attr("chunk_numel") = cuda::kChunkNumel;
}

}  // namespace wpadamw
