// How a bucket is shared out to threads.
#pragma once

#include <cstdint>

#include "../bucket.h"
#include "instruction_sets.h"

namespace wpadamw::cpu {

void run(const Bucket& bucket, const Call& call, const Loops& loops);

// The sums of all terms over each tensor: sums[term * tensors + tensor].
void sum(const Bucket& bucket, const Call& call, const Loops& loops, int num_terms, double* sums);

// A step, and the sums of the terms that it is tracked by: sums[term * tensors + tensor].
void track(const Bucket& bucket, const Call& call, const Loops& loops, double* sums);

}  // namespace wpadamw::cpu
