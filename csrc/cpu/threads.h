// How a bucket is shared out to threads.
#pragma once

#include <cstdint>

#include "../bucket.h"
#include "kernels.h"

namespace wpadamw::cpu {

void run(const Bucket& bucket, const Call& call, const Kernels& kernels);

// The sums of all terms over each tensor: sums[term * tensors + tensor].
void sum(const Bucket& bucket, const Call& call, const Kernels& kernels, int num_terms,
         double* sums);

}  // namespace wpadamw::cpu
