// The CPU loop, over addresses of tensors.
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "../bucket.h"
#include "../cpu/instruction_sets.h"
#include "../cpu/threads.h"
#include "bindings.h"
#include "checks.h"
#include "cpu.h"
#include "made.h"

namespace py = pybind11;

namespace wpadamw {
namespace {

using Sizes = std::vector<int64_t>;

// More threads than any machine has; creating many more ends the process.
constexpr int kMaxThreads = 4096;

BoundBucket make_bucket(const std::string& rule, DType param_dtype, const Addresses& params,
                        const Sizes& offsets, const Sizes& numels, const Addresses& weights,
                        const Addresses& state, int num_looks, bool has_averages, bool is_noisy,
                        const std::vector<int>& formats, const Addresses& scales, uintptr_t rest,
                        bool has_noisy_params) {
  BoundBucket bucket;
  bucket.rule_id = rule_id(rule);
  check_range("num_looks", num_looks, 1, kMaxLooks);
  bucket.num_looks = num_looks;
  bucket.param_dtype = param_dtype;
  check_code("param_dtype", param_dtype);
  const int64_t past = check_spans(param_dtype, params, offsets, numels);
  const size_t real_size = real_size_of(param_dtype);
  bucket.has_weights = !weights.empty();
  bucket.has_averages = has_averages;
  bucket.is_noisy = is_noisy;
  for (const uintptr_t address : state) bucket.state.push_back(reinterpret_cast<void*>(address));
  store(bucket, {formats, scales, rest, has_noisy_params}, past, is_noisy);
  if (bucket.is_small()) {
    check_range("the number of states", static_cast<int64_t>(state.size()), 0, cpu::kMaxStates);
  }
  check_state(bucket.rule(), has_averages, state, bucket.formats, past, real_size);
  // With a rest they are float32, or taken for it.
  const bool is_own = rest != 0 || has_noisy_params;
  const DType held = is_own ? DType::kFloat32 : param_dtype;
  check_sources(bucket.rule(), held, bucket.has_weights, past > 0);
  if (bucket.has_weights) check_weights(weights, numels, real_size);
  bucket.spans.resize(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    bucket.spans[i].param = params[i];
    if (bucket.has_weights) bucket.spans[i].weight = weights[i];
    bucket.spans[i].offset = offsets[i];
    bucket.spans[i].numel = numels[i];
    bucket.most_bytes = std::max(bucket.most_bytes, numels[i] * static_cast<int64_t>(real_size));
  }
  return bucket;
}

BoundBucket& idle(const py::object& self) {
  auto& bucket = made<BoundBucket>(self);
  if (bucket.is_running) throw std::runtime_error("the bucket runs in another thread");
  return bucket;
}

// Which rows the tensors take: those of the operation, then those of what they hold.
const int32_t* check_index(const Bucket& bucket, Operation operation, int64_t num_rows,
                           uintptr_t address) {
  const auto n = static_cast<int64_t>(bucket.spans.size());
  check_memory("index", {address, 2 * n * int64_t{sizeof(int32_t)}, alignof(int32_t)});
  const auto* index = reinterpret_cast<const int32_t*>(address);
  const int64_t least = operation == Operation::kPredict ? -1 : 0;
  for (int64_t i = 0; i < 2 * n; ++i) {
    check_range({"index", static_cast<size_t>(i)}, index[i], i < n ? least : -1, num_rows - 1);
  }
  return index;
}

// Without an index all take row 0, and hold row 1 if there is one.
void set_rows(Bucket& bucket, int64_t num_rows, const int32_t* index) {
  const size_t n = bucket.spans.size();
  const int32_t held = num_rows > 1 ? 1 : -1;
  for (size_t i = 0; i < n; ++i) {
    bucket.spans[i].row = index == nullptr ? 0 : index[i];
    bucket.spans[i].held = index == nullptr ? held : index[n + i];
  }
}

// A gradient's dtype is known when a step runs: until then it is the wider of both.
void check_ends(const Bucket& bucket, const Addresses& grads) {
  const auto size = static_cast<int64_t>(real_size_of(bucket.param_dtype));
  for (size_t i = 0; i < grads.size(); ++i) {
    const int64_t num_bytes = bucket.spans[i].numel * size;
    if (grads[i] > last_address(num_bytes)) refuse_memory({"grads", i}, {grads[i], num_bytes, 1});
  }
}

// The bits are no smaller than any of the addresses: what suits them suits all.
uintptr_t bits_of(const Addresses& addresses) {
  uintptr_t bits = 0;
  for (const uintptr_t address : addresses) bits |= address;
  return bits;
}

void set_grads(const py::object& self, const Addresses& grads) { use_grads(idle(self), grads); }

void check_grads(const BoundBucket& bucket, DType grad_dtype) {
  if (!bucket.has_grads) throw std::runtime_error("set_grads must be called before a step runs");
  const size_t size = size_of(grad_dtype);
  if (bucket.grad_bits % size == 0) return;
  for (size_t i = 0; i < bucket.spans.size(); ++i) {
    const Span& span = bucket.spans[i];
    if (span.grad != 0) check_memory({"grads", i}, {span.grad, span.numel, size});
  }
}

// What tells of predictions: float64, [kNumTracked, tensors].
void check_tracked(const BoundBucket& bucket, Operation operation, uintptr_t tracked) {
  if (!is_step(operation)) refuse("tracked", "be 0 but for steps", std::to_string(tracked));
  const auto num_sums = static_cast<int64_t>(bucket.spans.size()) * kNumTracked;
  check_memory("tracked", {tracked, num_sums * int64_t{sizeof(double)}, alignof(double)});
}

class Running {
 public:
  explicit Running(BoundBucket& bucket) : bucket_(bucket) { bucket_.is_running = true; }
  ~Running() { bucket_.is_running = false; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  BoundBucket& bucket_;
};

// Checks everything and then writes to the table.
Call make_call(BoundBucket& bucket, Operation operation, DType grad_dtype, const RowMemory& rows,
               double grad_factor, int num_threads) {
  check_grad_dtype(grad_dtype, bucket.param_dtype);
  Call call;
  call.operation = operation;
  call.grad_dtype = grad_dtype;
  const int64_t most = rows.index == 0 ? 2 : INT32_MAX;
  call.scalars = check_rows(bucket.row_width(), rows.address, rows.num_rows, most);
  call.row_width = static_cast<int>(bucket.row_width());
  call.step_width = static_cast<int>(bucket.step_width());
  call.param_size = static_cast<int64_t>(size_of(bucket.param_dtype));
  call.grad_factor = grad_factor;
  call.num_threads = num_threads;
  const int32_t* index = rows.index == 0 ? nullptr
                                            : check_index(bucket, operation, rows.num_rows,
                                                          rows.index);
  check_range("num_threads", num_threads, 1, kMaxThreads);
  if (is_step(operation)) check_grads(bucket, grad_dtype);
  set_rows(bucket, rows.num_rows, index);
  return call;
}

void run(const py::object& self, Operation operation, DType grad_dtype, uintptr_t scalars,
         int64_t num_rows, uintptr_t index, double grad_factor, int num_threads, uintptr_t tracked,
         const char* instruction_set) {
  run_rows(idle(self), operation, grad_dtype, {scalars, num_rows, index}, grad_factor, num_threads,
           instruction_set, tracked);
}

// Sums what a step would read; writes nothing but `out`, of float64, [terms, tensors].
void sums(const py::object& self, DType grad_dtype, uintptr_t scalars, int64_t num_rows,
          uintptr_t index, double grad_factor, int num_threads, uintptr_t out,
          const char* instruction_set) {
  BoundBucket& bucket = idle(self);
  const int num_terms = bucket.rule().num_terms;
  check_has_terms(bucket.rule());
  const auto num_sums = static_cast<int64_t>(bucket.spans.size()) * num_terms;
  check_memory("out", {out, num_sums * int64_t{sizeof(double)}, alignof(double)});
  const cpu::Loops loops = cpu::loops_of(bucket.rule_id, instruction_set);
  const Call call = make_call(bucket, Operation::kStep, grad_dtype, {scalars, num_rows, index},
                              grad_factor, num_threads);
  const Running running(bucket);
  const py::gil_scoped_release release;
  cpu::sum(bucket, call, loops, num_terms, reinterpret_cast<double*>(out));
}

int64_t completed(const py::object& self) { return made<BoundBucket>(self).completed; }

}  // namespace

void use_grads(BoundBucket& bucket, const Addresses& grads) {
  check_size("grads", grads.size(), bucket.spans.size());
  const uintptr_t bits = bits_of(grads);
  if (bits > last_address(bucket.most_bytes)) check_ends(bucket, grads);
  for (size_t i = 0; i < grads.size(); ++i) bucket.spans[i].grad = grads[i];
  bucket.grad_bits = bits;
  bucket.has_grads = true;
}

void run_rows(BoundBucket& bucket, Operation operation, DType grad_dtype, const RowMemory& rows,
              double grad_factor, int num_threads, const char* instruction_set,
              uintptr_t tracked) {
  if (bucket.is_running) throw std::runtime_error("the bucket runs in another thread");
  check_can_step(bucket.rule());
  check_code("operation", operation);
  if (tracked != 0) check_tracked(bucket, operation, tracked);
  const cpu::Loops loops = cpu::loops_of(bucket.rule_id, instruction_set);
  const Call call = make_call(bucket, operation, grad_dtype, rows, grad_factor, num_threads);
  const Running running(bucket);
  const py::gil_scoped_release release;
  if (tracked == 0) {
    cpu::run(bucket, call, loops);
  } else {
    cpu::track(bucket, call, loops, reinterpret_cast<double*>(tracked));
  }
  ++bucket.completed;
}

void bind_cpu(py::module_& m) {
  auto bucket = py::class_<BoundBucket>(m, "Bucket", py::module_local());
  bucket
      .def(py::init(&make_bucket), py::arg("rule"), py::arg("param_dtype"), py::arg("params"),
           py::arg("offsets"), py::arg("numels"), py::arg("weights"), py::arg("state"),
           py::arg("num_looks") = 1, py::arg("has_averages") = false, py::arg("is_noisy") = false,
           py::arg("formats") = std::vector<int>(), py::arg("scales") = Addresses(),
           py::arg("rest") = 0, py::arg("has_noisy_params") = false)
      .def_property_readonly("completed", &completed)
      .def("set_grads", &set_grads, py::arg("grads"))
      .def("run", &run, py::arg("operation"), py::arg("grad_dtype"), py::arg("scalars"),
           py::arg("num_rows"), py::arg("index"), py::arg("grad_factor"), py::arg("num_threads"),
           py::arg("tracked") = 0, py::arg("instruction_set") = nullptr)
      .def("sums", &sums, py::arg("grad_dtype"), py::arg("scalars"), py::arg("num_rows"),
           py::arg("index"), py::arg("grad_factor"), py::arg("num_threads"), py::arg("out"),
           py::arg("instruction_set") = nullptr);
  refuse_second_init<BoundBucket>(bucket);
  m.def("instruction_sets", &cpu::instruction_sets);
}

}  // namespace wpadamw
