// The CUDA kernels, over addresses of device memory and a stream.
#include <pybind11/stl.h>

#include "../cuda/launch.h"
#include "bindings.h"
#include "checks.h"
#include "made.h"

namespace py = pybind11;

namespace wpadamw {
namespace {

constexpr int64_t kMaxBlocks = INT32_MAX;        // of a launch
constexpr int64_t kMaxTensors = INT32_MAX;       // of a bucket: chunks name them by an int32
constexpr int64_t kMaxEntries = kMaxTensors / 2;  // of a ledger: an int32 names two rows for each

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

// The address of a number, or 0.
template <typename pointee_t>
const pointee_t* optional(const char* name, uintptr_t address) {
  return address == 0 ? nullptr : array<const pointee_t>(name, address, 1);
}

struct BoundBucket : cuda::Bucket {
  size_t rule_id = 0;
  // Launches: an interrupted caller finds out whether its own was one of them.
  int64_t completed = 0;
  int64_t advanced = 0;

  const RuleInfo& rule() const { return rules()[rule_id]; }
  int64_t row_width() const { return rule().row_width(num_looks, num_further()); }
  const cuda::Kernels& kernels() const { return *cuda::kKernels[rule_id]; }
};

BoundBucket make_bucket(const std::string& rule, DType param_dtype, uintptr_t chunks,
                        int64_t num_chunks, int64_t num_tensors, uintptr_t grads, bool has_weights,
                        const Addresses& state, int num_looks, bool has_averages, bool is_noisy,
                        const std::vector<int>& formats, const Addresses& scales, uintptr_t rest,
                        bool has_noisy_params) {
  BoundBucket bucket;
  bucket.rule_id = rule_id(rule);
  check_range("num_looks", num_looks, 1, kMaxLooks);
  bucket.num_looks = num_looks;
  check_code("param_dtype", param_dtype);
  const bool has_elements = num_chunks > 0;
  check_range("num_chunks", num_chunks, 0, kMaxBlocks);
  check_range("num_tensors", num_tensors, has_elements, kMaxTensors);
  // How large they are stands in device memory: at least one access.
  check_state(bucket.rule(), has_averages, state, {}, has_elements, cuda::kAccessBytes);
  bucket.has_averages = has_averages;
  bucket.is_noisy = is_noisy;
  // With a rest they are float32, or taken for it.
  const bool is_own = rest != 0 || has_noisy_params;
  const DType held = is_own ? DType::kFloat32 : param_dtype;
  check_sources(bucket.rule(), held, has_weights, has_elements);
  bucket.param_dtype = param_dtype;
  bucket.chunks = array<const cuda::Chunk>("chunks", chunks, num_chunks);
  bucket.num_chunks = num_chunks;
  bucket.num_tensors = num_tensors;
  bucket.grads = array<const uintptr_t>("grads", grads, has_elements ? num_tensors : 0);
  bucket.has_weights = has_weights;
  for (const uintptr_t address : state) bucket.state.push_back(pointer<void>(address));
  store(bucket, {formats, scales, rest, has_noisy_params}, has_elements, is_noisy);
  return bucket;
}

struct Factor {
  double value;
  uintptr_t address;  // 0: the value above
};

cuda::Call make_call(const BoundBucket& bucket, Operation operation, DType grad_dtype,
                     const Factor& factor, uintptr_t found_inf, uintptr_t stream) {
  check_code("operation", operation);
  check_grad_dtype(grad_dtype, bucket.param_dtype);
  cuda::Call call;
  call.operation = operation;
  call.grad_dtype = grad_dtype;
  call.grad_factor = factor.value;
  call.grad_factor_address = optional<double>("grad_factor_address", factor.address);
  call.found_inf = optional<float>("found_inf", found_inf);
  call.stream = pointer<void>(stream);
  return call;
}

// Rows in device memory, of which there is one at least, and which of them each tensor takes.
cuda::Rows device_rows(const BoundBucket& bucket, uintptr_t scalars, uintptr_t index) {
  const int64_t num_tensors = bucket.num_chunks > 0 ? bucket.num_tensors : 0;
  cuda::Rows rows;
  rows.scalars = array<const double>("scalars", scalars,
                                     num_tensors > 0 ? bucket.row_width() : 0);
  rows.index = array<const int32_t>("index", index, 2 * num_tensors);
  return rows;
}

// A step that is tracked writes float64 [kNumTracked, tensors], by way of [kNumTracked, chunks].
void run(BoundBucket& bucket, const cuda::Call& call, uintptr_t partial, uintptr_t tracked) {
  if (tracked == 0) {
    cuda::run(bucket, call, bucket.kernels());
  } else {
    if (!is_step(call.operation)) refuse("tracked", "be 0 but for steps", std::to_string(tracked));
    auto* of_chunks = array<double>("partial", partial, kNumTracked * bucket.num_chunks);
    auto* of_tensors = array<double>("tracked", tracked, kNumTracked * bucket.num_tensors);
    cuda::track(bucket, call, bucket.kernels(), of_chunks, of_tensors);
  }
  ++bucket.completed;
}

// With one row for all tensors, in the memory of the host; where there is a second one, all of them
// hold its prediction.
void run_row(const py::object& self, Operation operation, DType grad_dtype, uintptr_t scalars,
             int64_t num_rows, double grad_factor, uintptr_t grad_factor_address,
             uintptr_t found_inf, uintptr_t stream, uintptr_t partial, uintptr_t tracked) {
  auto& bucket = made<BoundBucket>(self);
  check_can_step(bucket.rule());
  if (bucket.num_looks > 1) throw std::runtime_error("rows of several looks lie in device memory");
  cuda::Call call = make_call(bucket, operation, grad_dtype, {grad_factor, grad_factor_address},
                              found_inf, stream);
  call.rows.row = check_rows(bucket.row_width(), scalars, num_rows, 2);
  if (num_rows == 2) call.rows.held = call.rows.row + bucket.row_width();
  run(bucket, call, partial, tracked);
}

// With a row per tensor, in device memory.
void run_rows(const py::object& self, Operation operation, DType grad_dtype, uintptr_t scalars,
              uintptr_t index, double grad_factor, uintptr_t grad_factor_address,
              uintptr_t found_inf, uintptr_t stream, uintptr_t partial, uintptr_t tracked) {
  auto& bucket = made<BoundBucket>(self);
  check_can_step(bucket.rule());
  cuda::Call call = make_call(bucket, operation, grad_dtype, {grad_factor, grad_factor_address},
                              found_inf, stream);
  call.rows = device_rows(bucket, scalars, index);
  run(bucket, call, partial, tracked);
}

// Sums what a step would read: float64 [terms, tensors], by way of [terms, chunks].
void sums(const py::object& self, DType grad_dtype, uintptr_t scalars, uintptr_t index,
          double grad_factor, uintptr_t grad_factor_address, uintptr_t partial, uintptr_t out,
          uintptr_t stream) {
  auto& bucket = made<BoundBucket>(self);
  const int num_terms = bucket.rule().num_terms;
  check_has_terms(bucket.rule());
  cuda::Call call = make_call(bucket, Operation::kStep, grad_dtype,
                              {grad_factor, grad_factor_address}, 0, stream);
  call.rows = device_rows(bucket, scalars, index);
  auto* of_chunks = array<double>("partial", partial, num_terms * bucket.num_chunks);
  auto* of_tensors = array<double>("out", out, num_terms * bucket.num_tensors);
  cuda::sum(bucket, call, bucket.kernels(), num_terms, of_chunks, of_tensors);
}

void total(uintptr_t numbers, int64_t count, uintptr_t out, uintptr_t stream) {
  check_range("count", count, 0, INT64_MAX / int64_t{sizeof(double)});
  const auto* from = array<const double>("numbers", numbers, count);
  cuda::total(from, count, array<double>("out", out, 1), pointer<void>(stream));
}

void advance(const py::object& self, int64_t num_tensors, uintptr_t steps, uintptr_t predictions,
             uintptr_t hyper, uintptr_t shares, uintptr_t has_grad, uintptr_t sums,
             uintptr_t scalars, uintptr_t index, Operation operation, uintptr_t found_inf,
             uintptr_t stream) {
  auto& bucket = made<BoundBucket>(self);
  const RuleInfo& rule = bucket.rule();
  check_can_step(rule);
  check_range("num_tensors", num_tensors, 0, kMaxEntries);
  check_code("operation", operation);
  const auto num_hyper = static_cast<int64_t>(rule.hyper.size()) + bucket.has_averages;
  cuda::Ledger ledger;
  ledger.num_tensors = num_tensors;
  ledger.steps = array<float>("steps", steps, num_tensors);
  ledger.num_looks = bucket.num_looks;
  ledger.has_averages = bucket.has_averages;
  ledger.is_noisy = bucket.is_noisy;
  ledger.predictions = array<double>("predictions", predictions,
                                     num_tensors * rule.record_width(bucket.num_looks));
  ledger.hyper = array<const double>("hyper", hyper, num_tensors > 0 ? num_hyper : 0);
  ledger.shares = array<const double>("shares", shares, num_tensors > 0 ? bucket.num_looks : 0);
  ledger.has_grad = array<const bool>("has_grad", has_grad, num_tensors);
  ledger.sums = array<const double>("sums", sums, num_tensors * rule.num_terms);
  ledger.found_inf = optional<float>("found_inf", found_inf);
  ledger.scalars = array<double>("scalars", scalars, 2 * num_tensors * bucket.row_width());
  ledger.index = array<int32_t>("index", index, 2 * num_tensors);
  bucket.kernels().advance(ledger, operation, pointer<void>(stream));
  ++bucket.advanced;
}

int64_t completed(const py::object& self) { return made<BoundBucket>(self).completed; }
int64_t advanced(const py::object& self) { return made<BoundBucket>(self).advanced; }

}  // namespace

void bind_cuda(py::module_& m) {
  auto bucket = py::class_<BoundBucket>(m, "Bucket", py::module_local());
  bucket
      .def(py::init(&make_bucket), py::arg("rule"), py::arg("param_dtype"), py::arg("chunks"),
           py::arg("num_chunks"), py::arg("num_tensors"), py::arg("grads"), py::arg("has_weights"),
           py::arg("state"), py::arg("num_looks") = 1, py::arg("has_averages") = false,
           py::arg("is_noisy") = false, py::arg("formats") = std::vector<int>(),
           py::arg("scales") = Addresses(), py::arg("rest") = 0,
           py::arg("has_noisy_params") = false)
      .def("run_row", &run_row, py::arg("operation"), py::arg("grad_dtype"), py::arg("scalars"),
           py::arg("num_rows"), py::arg("grad_factor"), py::arg("grad_factor_address"),
           py::arg("found_inf"), py::arg("stream"), py::arg("partial") = 0,
           py::arg("tracked") = 0)
      .def("run_rows", &run_rows, py::arg("operation"), py::arg("grad_dtype"), py::arg("scalars"),
           py::arg("index"), py::arg("grad_factor"), py::arg("grad_factor_address"),
           py::arg("found_inf"), py::arg("stream"), py::arg("partial") = 0,
           py::arg("tracked") = 0)
      .def("sums", &sums, py::arg("grad_dtype"), py::arg("scalars"), py::arg("index"),
           py::arg("grad_factor"), py::arg("grad_factor_address"), py::arg("partial"),
           py::arg("out"), py::arg("stream"))
      .def("advance", &advance, py::arg("num_tensors"), py::arg("steps"), py::arg("predictions"),
           py::arg("hyper"), py::arg("shares"), py::arg("has_grad"), py::arg("sums"),
           py::arg("scalars"), py::arg("index"), py::arg("operation"), py::arg("found_inf"),
           py::arg("stream"))
      .def_property_readonly("completed", &completed)
      .def_property_readonly("advanced", &advanced);
  refuse_second_init<BoundBucket>(bucket);
  m.def("total", &total, py::arg("numbers"), py::arg("count"), py::arg("out"), py::arg("stream"));
  m.def("why_not", &cuda::why_not);
  m.attr("chunk_numel") = kChunkNumel;
}

}  // namespace wpadamw
