// Loops over what is stored in small formats: pieces of it are decoded to float32, where the loops of
// the rules work on them, and encoded again. Compiled once per instruction set, for no rule.
#pragma once

#include "numbers.h"
#include "sum_loop.h"

namespace wpadamw::cpu::WPADAMW_ISA {
namespace {

template <typename value_t>
void widen(const value_t* values, int64_t n, float* to) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) to[j] = to_real(values[j]);
}
template <typename value_t>
void narrow(const float* values, int64_t n, value_t* to) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) to[j] = Round<value_t>::from(values[j]);
}

// At most `size` elements of a tensor, decoded. What is float32 in memory is used where it lies.
template <int64_t size>
class Piece {
 public:
  Piece(const Task& task, int64_t begin, int64_t n) : task_(task), begin_(begin), n_(n) {
    whole_ = task;
    whole_.state = state_;
    whole_.offset = 0;
    whole_.has_real_grad = true;
    whole_.param = is_param_whole() ? at(task.param, sizeof(float)) : address_of(param_memory_);
    if (task.weight != 0) whole_.weight = at(task.weight, sizeof(float));
    if (task.terms != nullptr) whole_.terms = static_cast<float*>(task.terms) + begin % kChunkNumel;
    for (int k = 0; k < num_tensors(); ++k) {
      const bool is_whole = format(k) == Format::kWhole;
      state_[k] = is_whole ? static_cast<float*>(task.state[k]) + task.offset + begin : numbers_[k];
    }
  }

  const Task& whole() const { return whole_; }
  Task untracked() const {
    Task task = whole_;
    task.terms = nullptr;
    return task;
  }

  void load_param() {
    if (is_param_whole()) return;
    const auto* halves = reinterpret_cast<const bfloat16*>(at(task_.param, sizeof(bfloat16)));
    if (task_.rest != nullptr) {
      const int16_t* rest = task_.rest + task_.offset + begin_;
#pragma GCC ivdep
      for (int64_t j = 0; j < n_; ++j) param_memory_[j] = joined(halves[j], rest[j]);
    } else if (task_.param_dtype == DType::kBFloat16) {
      widen(halves, n_, param_memory_);
    } else {
      widen(reinterpret_cast<const float16*>(halves), n_, param_memory_);
    }
  }

  void store_param(bool is_step) const {
    if (is_param_whole()) return;
    auto* halves = reinterpret_cast<bfloat16*>(at(task_.param, sizeof(bfloat16)));
    if (task_.rest != nullptr) {
      int16_t* rest = task_.rest + task_.offset + begin_;
#pragma GCC ivdep
      for (int64_t j = 0; j < n_; ++j) {
        const Parts parts = split(param_memory_[j]);
        halves[j].bits = parts.high.bits;  // no struct: compilers vectorise that not
        rest[j] = parts.rest;
      }
    } else if (task_.has_noisy_params && is_step) {
      const uint32_t first = static_cast<uint32_t>(begin_) + key(1);
      for (int64_t j = 0; j < n_; ++j) {
        halves[j] = noisy_bfloat16(param_memory_[j], noise_at(static_cast<uint32_t>(j), first));
      }
    } else if (task_.param_dtype == DType::kBFloat16) {
      narrow(param_memory_, n_, halves);
    } else {
      narrow(param_memory_, n_, reinterpret_cast<float16*>(halves));
    }
  }

  void load_grad() {
    if (task_.has_real_grad) {
      whole_.grad = at(task_.grad, sizeof(float));
    } else if (task_.param_dtype == DType::kBFloat16) {
      widen(reinterpret_cast<const bfloat16*>(at(task_.grad, sizeof(bfloat16))), n_, grad_);
      whole_.grad = address_of(grad_);
    } else {
      widen(reinterpret_cast<const float16*>(at(task_.grad, sizeof(float16))), n_, grad_);
      whole_.grad = address_of(grad_);
    }
  }

  void load_state() {
    for (int k = 0; k < num_tensors(); ++k) {
      if (format(k) != Format::kWhole) stored(k).load(n_, numbers_[k]);
    }
  }

  void store_state() {
    const uint32_t key = this->key(0);
    for (int k = 0; k < num_tensors(); ++k) {
      if (format(k) != Format::kWhole) stored(k).store(numbers_[k], n_, key);
    }
  }

 private:
  uint32_t key(uint32_t stream) const {
    return task_.is_noisy ? key_of(task_.row[task_.step_width - 1], stream) : 0;
  }
  bool is_param_whole() const { return task_.param_dtype == DType::kFloat32; }
  int num_tensors() const { return task_.num_tensors; }
  Format format(int k) const { return task_.formats[k]; }
  uintptr_t at(uintptr_t first, size_t element) const {
    return first + static_cast<uintptr_t>(begin_) * element;
  }
  static uintptr_t address_of(const float* values) { return reinterpret_cast<uintptr_t>(values); }

  Numbers stored(int k) const {
    const int64_t element = task_.offset + begin_;
    const int64_t num_bytes = has_scales(format(k)) ? 1 : int64_t{sizeof(bfloat16)};
    return {format(k), static_cast<char*>(task_.state[k]) + element * num_bytes,
            has_scales(format(k)) ? task_.scales[k] + element / kFormatBlock : nullptr, begin_};
  }

  const Task& task_;
  int64_t begin_, n_;
  Task whole_;
  void* state_[kMaxStates];
  alignas(64) float numbers_[kMaxStates][size];
  alignas(64) float param_memory_[size], grad_[size];
};

// Elements [begin, end), of which the first one begins a block, by the loops for float32.
void run_stored(const Task& task, const RunTable& whole, Operation operation, Source source,
                int64_t begin, int64_t end) {
  const auto run = [&](Operation operation, Source source, const Task& piece, int64_t n) {
    whole.at[static_cast<int>(operation)][static_cast<int>(source)](piece, 0, n, false);
  };
  for (; begin < end; begin += kPiece) {
    const int64_t n = end - begin < kPiece ? end - begin : kPiece;
    Piece<kPiece> piece(task, begin, n);
    if (source != Source::kBackup || task.terms != nullptr) piece.load_param();
    if (operation != Operation::kRestore || source == Source::kPrediction) piece.load_state();
    if (is_step(operation)) {
      piece.load_grad();
      run(Operation::kStep, source, piece.whole(), n);
      piece.store_state();
      const Source from = source == Source::kBackup ? source : Source::kParam;
      if (predicts(operation)) run(Operation::kPredict, from, piece.untracked(), n);
    } else {
      run(operation, source, piece.whole(), n);
    }
    piece.store_param(is_step(operation));
  }
}

// The sums over n elements, at most kChunkNumel.
void sum_stored(const Task& task, Sum whole, int64_t begin, int64_t n, double* sums) {
  Piece<kChunkNumel> piece(task, begin, n);
  piece.load_param();
  piece.load_state();
  piece.load_grad();
  whole(piece.whole(), 0, n, sums);
}

// A step over them, and what it is tracked by.
void track_stored(Task task, const RunTable& whole, Operation operation, Source source,
                  int64_t begin, int64_t n, double* sums) {
  alignas(64) float terms[kNumTracked][kChunkNumel];
  task.terms = terms;
  run_stored(task, whole, operation, source, begin, begin + n);
  for (int t = 0; t < kNumTracked; ++t) sums[t] = sum_by_halves(terms[t], n);
}

}  // namespace
}  // namespace wpadamw::cpu::WPADAMW_ISA
