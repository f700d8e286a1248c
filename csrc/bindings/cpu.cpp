// The CPU loop, over addresses of tensors.
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "../bucket.h"
#include "../cpu/bucket_kernels.h"
#include "../scalars.h"
#include "bindings.h"
#include "checks.h"
#include "made.h"

namespace py = pybind11;

namespace wpadamw {
namespace {

using Sizes = std::vector<int64_t>;
using Rows = std::vector<int32_t>;

// More threads than any machine has; creating many more ends the process.
constexpr int kMaxThreads = 4096;

struct BoundBucket : Bucket {
  bool has_grads = false;
  bool is_running = false;  // in another thread of Python
  int64_t most_bytes = 0;   // of a gradient
  uintptr_t grad_bits = 0;  // every bit that is set in an address of a gradient
  int64_t completed = 0;    // runs: an interrupted caller finds out whether its own was one of them
};

BoundBucket make_bucket(const std::string& rule, DType param_dtype, const Addresses& params,
                        const Sizes& offsets, const Sizes& numels, uintptr_t weight,
                        const Addresses& state) {
  BoundBucket bucket;
  bucket.rule = rule_id(rule);
  bucket.param_dtype = param_dtype;
  bucket.weight = reinterpret_cast<void*>(weight);
  check_code("param_dtype", param_dtype);
  check_size("state", state.size(), num_states(bucket.rule));
  const int64_t past = check_spans(param_dtype, params, offsets, numels);
  const size_t real_size = real_size_of(param_dtype);
  check_flat(param_dtype, weight, state, past * static_cast<int64_t>(real_size), real_size);
  for (size_t k = 0; k < state.size(); ++k) bucket.state[k] = reinterpret_cast<void*>(state[k]);
  bucket.spans.resize(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    bucket.spans[i].param = params[i];
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

void check_rows(const char* name, const Rows& rows, int64_t least, const Bucket& bucket,
                size_t num_rows) {
  // An empty list of rows stands for row 0 (rows) or for no row (last_rows) everywhere.
  if (!rows.empty()) check_size(name, rows.size(), bucket.spans.size());
  const auto past = static_cast<int64_t>(num_rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    check_range({name, i}, rows[i], least, past - 1);
  }
}

void set_rows(Bucket& bucket, const Rows& rows, const Rows& last_rows) {
  for (size_t i = 0; i < bucket.spans.size(); ++i) {
    bucket.spans[i].row = rows.empty() ? 0 : rows[i];
    bucket.spans[i].last_row = last_rows.empty() ? -1 : last_rows[i];
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

void set_grads(const py::object& self, const Addresses& grads) {
  BoundBucket& bucket = idle(self);
  check_size("grads", grads.size(), bucket.spans.size());
  const uintptr_t bits = bits_of(grads);
  if (bits > last_address(bucket.most_bytes)) check_ends(bucket, grads);
  for (size_t i = 0; i < grads.size(); ++i) bucket.spans[i].grad = grads[i];
  bucket.grad_bits = bits;
  bucket.has_grads = true;
}

void check_grads(const BoundBucket& bucket, DType grad_dtype) {
  if (!bucket.has_grads) throw std::runtime_error("set_grads must be called before a step runs");
  const size_t size = size_of(grad_dtype);
  if (bucket.grad_bits % size == 0) return;
  for (size_t i = 0; i < bucket.spans.size(); ++i) {
    const Span& span = bucket.spans[i];
    if (span.grad != 0) check_memory({"grads", i}, {span.grad, span.numel, size});
  }
}

size_t count_rows(const std::vector<double>& scalars) {
  if (scalars.empty() || scalars.size() % kNumScalars != 0) {
    refuse("scalars", "be rows of " + std::to_string(kNumScalars) + " numbers",
           std::to_string(scalars.size()));
  }
  return scalars.size() / kNumScalars;
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

void run(const py::object& self, Operation operation, DType grad_dtype, std::vector<double> scalars,
         const Rows& rows, const Rows& last_rows, int num_threads, const char* instruction_set) {
  BoundBucket& bucket = idle(self);
  check_code("operation", operation);
  check_grad_dtype(grad_dtype, bucket.param_dtype);
  const size_t num_rows = count_rows(scalars);
  check_rows("rows", rows, 0, bucket, num_rows);
  check_rows("last_rows", last_rows, -1, bucket, num_rows);
  check_range("num_threads", num_threads, 1, kMaxThreads);
  const CpuLoop loop = cpu_loop(instruction_set);
  if (is_step(operation)) check_grads(bucket, grad_dtype);

  set_rows(bucket, rows, last_rows);
  const Call call{operation, grad_dtype, std::move(scalars), num_threads};
  const Running running(bucket);
  const py::gil_scoped_release release;
  loop(bucket, call);
  ++bucket.completed;
}

int64_t completed(const py::object& self) { return made<BoundBucket>(self).completed; }

}  // namespace

void bind_cpu(py::module_& m) {
  auto bucket = py::class_<BoundBucket>(m, "Bucket", py::module_local());
  bucket
      .def(py::init(&make_bucket), py::arg("rule"), py::arg("param_dtype"), py::arg("params"),
           py::arg("offsets"), py::arg("numels"), py::arg("weight"), py::arg("state"))
      .def_property_readonly("completed", &completed)
      .def("set_grads", &set_grads, py::arg("grads"))
      .def("run", &run, py::arg("operation"), py::arg("grad_dtype"), py::arg("scalars"),
           py::arg("rows"), py::arg("last_rows"), py::arg("num_threads"),
           py::arg("instruction_set") = nullptr);
  refuse_second_init<BoundBucket>(bucket);
  m.def("instruction_sets", &instruction_sets);
}

}  // namespace wpadamw
