// What kernels on the device are handed, by value, and the calls that launch them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../combinations.h"
#include "../formats.h"

namespace wpadamw::cuda {

// Elements of one block: so many that every thread has several 16-byte accesses of each array under
// way, so few that a bucket of small tensors fills the chip.
constexpr int kThreads = 256;
constexpr int kElementsPerThread = 8;
static_assert(kChunkNumel == kThreads * kElementsPerThread);

// Of one access to memory. Flat buffers begin at multiples of it.
constexpr int kAccessBytes = 16;

// The share of one block: up to kChunkNumel elements of one tensor, in memory order.
struct Chunk {
  uintptr_t param;   // address of the chunk's first element
  uintptr_t weight;  // address of its true weight, where the bucket has them apart
  int64_t offset;   // of its state in the flat buffers, in elements
  int64_t begin;    // of the chunk in its tensor, in elements
  int32_t tensor;
  int32_t numel;
};

// Every pointer is to device memory.
struct Bucket {
  DType param_dtype{};
  const Chunk* chunks = nullptr;  // in the order of tensors, and of elements in a tensor
  int64_t num_chunks = 0;
  int64_t num_tensors = 0;
  const uintptr_t* grads = nullptr;  // per tensor; 0: no gradient, steps leave it alone
  bool has_weights = false;          // true weights, apart from what parameters hold
  bool has_averages = false;         // of true weights
  bool is_noisy = false;             // rows have the count of an update
  std::vector<void*> state;          // flat, one of each kind; the averages come last
  int num_looks = 1;                 // of a row of scalars
  // What is stored in small formats, see csrc/bucket.h.
  std::vector<Format> formats;
  std::vector<float*> scales;
  int16_t* rest = nullptr;
  bool has_noisy_params = false;

  int num_further() const { return has_averages + is_noisy; }
  bool is_small() const { return !formats.empty(); }
};

// The scalars of a call: at most two rows of the host, of one look each, or any number of them in
// device memory.
struct Rows {
  const double* scalars = nullptr;  // in device memory; null: those below
  const int32_t* index = nullptr;   // with `scalars`: each tensor's row, then each tensor's held row
  const double* row = nullptr;      // of the host: this operation's scalars
  const double* held = nullptr;     // of the host: the prediction that parameters hold; null: none
};

struct Call {
  Operation operation{};
  DType grad_dtype{};
  Rows rows;
  double grad_factor = 1.0;
  const double* grad_factor_address = nullptr;  // in device memory; null: the factor above
  const float* found_inf = nullptr;             // in device memory; not 0: the call does nothing
  void* stream = nullptr;
};

// Counts and records of a bucket's parameters in device memory, and the rows computed from them.
struct Ledger {
  int64_t num_tensors = 0;
  float* steps = nullptr;
  double* predictions = nullptr;  // records: a kind, then the numbers of each Look
  bool has_averages = false;
  bool is_noisy = false;
  const double* hyper = nullptr;  // of the rule, then the averages' own
  const double* shares = nullptr;  // how far a prediction goes by each look
  int num_looks = 1;
  const bool* has_grad = nullptr;
  const double* sums = nullptr;  // of the rule's terms, sums[term * num_tensors + tensor]
  const float* found_inf = nullptr;
  double* scalars = nullptr;  // written: each tensor's row, then each tensor's held row
  int32_t* index = nullptr;   // written: which they are, as in Rows
};

// All of them throw std::runtime_error where a launch fails.
using Run = void (*)(const Bucket& bucket, const Call& call);
// The sum of each term over each chunk: partial[term * num_chunks + chunk].
using Sum = void (*)(const Bucket& bucket, const Call& call, double* partial);
using Advance = void (*)(const Ledger& ledger, Operation operation, void* stream);

// What is compiled of a rule; nullptr: this combination is not. The last index: whether there is a
// backup.
struct RunTable {
  Run at[kNumOperations][2];
};
struct SumTable {
  Sum at[2];
};
// Over small formats; `partial` is null for steps that are not tracked.
struct StoredTable {
  Sum step = nullptr, predict = nullptr, restore = nullptr, sum = nullptr;
};
struct Kernels {
  RunTable run[Supported::kSize];
  SumTable sum[Supported::kSize];
  SumTable track[Supported::kSize];  // steps that sum what they are tracked by
  StoredTable stored;
  Advance advance;
};

// Of every rule, in the order of the list of rules.
extern const Kernels* const kKernels[];

void run(const Bucket& bucket, const Call& call, const Kernels& kernels);

// The sums of all terms over each tensor, sums[term * num_tensors + tensor], by way of `partial`.
void sum(const Bucket& bucket, const Call& call, const Kernels& kernels, int num_terms,
         double* partial, double* sums);
// A step, and the same sums of what it is tracked by.
void track(const Bucket& bucket, const Call& call, const Kernels& kernels, double* partial,
           double* sums);
// The sum of numbers in device memory, from the first to the last.
void total(const double* numbers, int64_t count, double* total, void* stream);

// Why no kernel of this build runs here, or an empty string.
std::string why_not();

}  // namespace wpadamw::cuda
