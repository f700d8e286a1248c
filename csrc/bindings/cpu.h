// A bucket of tensors on the CPU, as Python holds it.
#pragma once

#include "../bucket.h"
#include "bindings.h"
#include "checks.h"

namespace wpadamw {

struct BoundBucket : Bucket {
  size_t rule_id = 0;
  bool has_grads = false;
  bool is_running = false;  // in another thread of Python
  int64_t most_bytes = 0;   // of a gradient
  uintptr_t grad_bits = 0;  // every bit that is set in an address of a gradient
  int64_t completed = 0;    // runs: an interrupted caller finds out whether its own was one of them

  const RuleInfo& rule() const { return rules()[rule_id]; }
  int64_t row_width() const { return rule().row_width(num_looks, num_further()); }
  int64_t step_width() const { return rule().step_width(num_further()); }
  int64_t record_width() const { return rule().record_width(num_looks); }
};

// Rows of scalars in the memory of the host.
struct RowMemory {
  uintptr_t address;
  int64_t num_rows;
  uintptr_t index;  // 0: row 0 for all, and row 1 is held by all if there is one
};

// Both check everything before they write.
void use_grads(BoundBucket& bucket, const Addresses& grads);
void run_rows(BoundBucket& bucket, Operation operation, DType grad_dtype, const RowMemory& rows,
              double grad_factor, int num_threads, const char* instruction_set,
              uintptr_t tracked = 0);

}  // namespace wpadamw
