// Steps after which nothing has changed but gradients: what has to be asked and what has to be done
// for a bucket, in two calls. Asked and done one by one in Python it would take longer than the update
// of small tensors.
#include <algorithm>

#include "bindings.h"
#include "cpu.h"
#include "made.h"
#include "tensors.h"

namespace wpadamw {

bool holds(const py::list& dicts, const py::list& values);

namespace {

constexpr double kMade = 1.0;  // wpadamw._backends.interface.Kind

// What a bucket consists of. Everything is Python's own, and kept alive.
struct Parts {
  py::object bucket, layouts;
  py::list params;
  py::list flats;   // of the state
  py::list ledger;  // step counts and records
  py::list states;  // dicts
  py::list values;  // all that they hold, in order
};

class Standing {
 public:
  Standing(Parts parts, DType dtype, uintptr_t steps, uintptr_t records, py::object increment)
      : parts_(std::move(parts)), dtype_(dtype), increment_(std::move(increment)) {
    const auto n = static_cast<int64_t>(bucket().spans.size());
    const int64_t num_numbers = n * bucket().record_width();
    check_size("params", parts_.params.size(), bucket().spans.size());
    check_memory("steps", {steps, n * int64_t{sizeof(float)}, alignof(float)});
    check_memory("records", {records, num_numbers * int64_t{sizeof(double)}, alignof(double)});
    steps_ = reinterpret_cast<float*>(steps);
    records_ = reinterpret_cast<double*>(records);
  }

  // How many updates every parameter has had, if all is as it was, and each has a plain gradient: these
  // are kept then. Otherwise, or if parameters differ in it, -1.
  int64_t look(const py::object& of_params, const py::object& of_flats, const py::object& of_ledger) {
    const bool is_same = made<Versions>(of_flats).are_of(parts_.flats) &&
                         made<Versions>(of_ledger).are_of(parts_.ledger) &&
                         holds(parts_.states, parts_.values);
    if (!is_same || !are_alike()) return -1;
    py::list grads;
    const auto found =
        made<Layouts>(parts_.layouts).find_all(parts_.params, made<Versions>(of_params), grads);
    if (!found) return -1;
    use_grads(bucket(), found->addresses);
    grads_ = std::move(grads);
    grad_dtype_ = found->are_float32 ? DType::kFloat32 : dtype_;
    return static_cast<int64_t>(steps_[0]);
  }

  // The step that follows a look: runs, counts, records and tells autograd, without an interrupt.
  // `row` is that of the update, and `holds_prediction` what the parameters do.
  void step(Operation operation, const std::vector<double>& row, bool holds_prediction,
            double grad_factor, int num_threads, const py::object& of_params) {
    if (!grads_) throw std::runtime_error("look must be called before step");
    check_size("row", row.size(), static_cast<size_t>(bucket().row_width()));
    std::vector<double> rows(row);
    if (holds_prediction && !bucket().has_weights && records_[0] == kMade) {
      rows.resize(row.size() + static_cast<size_t>(bucket().step_width()));
      rows.insert(rows.end(), records_ + 1, records_ + bucket().record_width());
    }
    const auto num_rows = static_cast<int64_t>(rows.size() / row.size());
    run_rows(bucket(), operation, grad_dtype_,
             {reinterpret_cast<uintptr_t>(rows.data()), num_rows, 0}, grad_factor, num_threads,
             nullptr);
    grads_ = py::object();
    std::fill_n(steps_, bucket().spans.size(), steps_[0] + 1.0f);
    record(operation, row.data());
    increment_(parts_.params);
    made<Versions>(of_params).raise();
  }

 private:
  BoundBucket& bucket() const { return made<BoundBucket>(parts_.bucket); }

  bool are_alike() const {
    const size_t n = bucket().spans.size();
    const auto width = static_cast<size_t>(bucket().record_width());
    const auto is_common = [&](float count) { return count == steps_[0]; };
    if (n == 0 || !std::all_of(steps_, steps_ + n, is_common)) return false;
    // Records are needed where true weights are computed from predictions.
    return bucket().has_weights ||
           std::equal(records_ + width, records_ + n * width, records_);
  }

  void record(Operation operation, const double* row) {
    const double* looks = row + bucket().step_width();
    const int64_t width = bucket().record_width() - 1;
    double* record = records_;
    for (size_t i = 0; i < bucket().spans.size(); ++i) {
      const bool is_made = operation == Operation::kStepAndPredict;
      *record++ = is_made;
      for (int64_t k = 0; k < width; ++k) *record++ = is_made ? looks[k] : 0.0;
    }
  }

  Parts parts_;
  DType dtype_;  // of parameters: predictions may go to copies of another one
  float* steps_ = nullptr;
  double* records_ = nullptr;
  py::object increment_, grads_;
  DType grad_dtype_{};
};

Standing make_standing(const py::object& bucket, const py::object& layouts, const py::list& params,
                       const py::list& flats, const py::list& ledger, const py::list& states,
                       const py::list& values, DType dtype, uintptr_t steps, uintptr_t records,
                       const py::object& increment) {
  check_code("dtype", dtype);
  return {{bucket, layouts, params, flats, ledger, states, values}, dtype, steps, records,
          increment};
}

int64_t look(const py::object& self, const py::object& of_params, const py::object& of_flats,
             const py::object& of_ledger) {
  return made<Standing>(self).look(of_params, of_flats, of_ledger);
}

void step(const py::object& self, Operation operation, const std::vector<double>& row,
          bool holds_prediction, double grad_factor, int num_threads, const py::object& of_params) {
  check_code("operation", operation);
  made<Standing>(self).step(operation, row, holds_prediction, grad_factor, num_threads, of_params);
}

}  // namespace

void bind_standing(py::module_& m) {
  auto standing = py::class_<Standing>(m, "Standing", py::module_local());
  standing
      .def(py::init(&make_standing), py::arg("bucket"), py::arg("layouts"), py::arg("params"),
           py::arg("flats"), py::arg("ledger"), py::arg("states"), py::arg("values"),
           py::arg("dtype"), py::arg("steps"), py::arg("records"), py::arg("increment"))
      .def("look", &look, py::arg("of_params"), py::arg("of_flats"), py::arg("of_ledger"))
      .def("step", &step, py::arg("operation"), py::arg("row"), py::arg("holds_prediction"),
           py::arg("grad_factor"), py::arg("num_threads"), py::arg("of_params"));
  refuse_second_init<Standing>(standing);
}

}  // namespace wpadamw
