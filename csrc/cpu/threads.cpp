// Shares a bucket out to threads: the same for every rule, dtype and instruction set.
#include "threads.h"

#include <omp.h>

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace wpadamw::cpu {
namespace {

// Below this many elements a second thread costs more to wake than it saves.
constexpr int64_t kMinElementsPerThread = 16384;

// A bucket with more bytes of parameters than this finds none of them in the cache at its next turn.
constexpr int64_t kStreamingBytes = int64_t{8} << 20;

// Whether the operation leaves this tensor alone.
bool is_idle(const Bucket& bucket, const Call& call, const Span& span) {
  if (is_step(call.operation)) return span.grad == 0;
  const bool moves = call.operation == Operation::kPredict ? span.row >= 0 : span.held >= 0;
  return !bucket.has_weights && !moves;
}

// A prediction that moves nothing leads to the true weights.
Operation operation_on(const Call& call, const Span& span) {
  const bool is_null = call.operation == Operation::kPredict && span.row < 0;
  return is_null ? Operation::kRestore : call.operation;
}

int64_t busy_elements(const Bucket& bucket, const Call& call) {
  int64_t total = 0;
  for (const Span& span : bucket.spans) total += is_idle(bucket, call, span) ? 0 : span.numel;
  return total;
}

Source source_of(const Bucket& bucket, const Call& call, const Span& span) {
  if (bucket.has_weights) return Source::kBackup;
  const bool is_true = span.held < 0 || call.operation == Operation::kPredict;
  return is_true ? Source::kParam : Source::kPrediction;
}

Task task_of(const Bucket& bucket, const Call& call, const Span& span) {
  const DType real = bucket.param_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const auto row = [&](int32_t i) { return call.scalars + int64_t{i} * call.row_width; };
  return {span.param,
          span.weight,
          span.grad,
          span.offset,
          bucket.state.data(),
          bucket.has_averages,
          row(std::max(span.row, 0)),
          span.held < 0 ? nullptr : row(span.held),
          call.grad_factor,
          call.grad_dtype == real,
          bucket.num_looks,
          nullptr,
          bucket.is_noisy,
          bucket.param_dtype,
          bucket.formats.data(),
          bucket.scales.data(),
          bucket.rest,
          bucket.has_noisy_params,
          static_cast<int>(bucket.state.size()),
          call.step_width};
}

int useful_threads(int64_t total, int most) {
  const int64_t useful = (total + kMinElementsPerThread - 1) / kMinElementsPerThread;
  return static_cast<int>(std::clamp<int64_t>(useful, 1, most));
}

// Where thread `index` of `count` begins.
int64_t split(int64_t total, int index, int count, int64_t unit) {
  return index == count ? total : total / count * index / unit * unit;
}

void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Elements [first, past) of the bucket, counted over its busy tensors in table order.
void run_thread(const Bucket& bucket, const Call& call, const RunTable& table, int64_t first,
                int64_t past, bool streaming) {
  int64_t start = 0;
  for (const Span& span : bucket.spans) {
    if (start >= past) break;
    if (is_idle(bucket, call, span)) continue;
    const int64_t begin = std::max<int64_t>(first - start, 0);
    const int64_t end = std::min(past - start, span.numel);
    if (begin < end) {
      const auto operation = static_cast<size_t>(operation_on(call, span));
      const Run run = table.at[operation][static_cast<int>(source_of(bucket, call, span))];
      run(task_of(bucket, call, span), begin, end, streaming);
    }
    start += span.numel;
  }
  if (streaming) finish_streaming();
}

int64_t chunks_of(const Bucket& bucket, const Call& call, const Span& span) {
  return is_idle(bucket, call, span) ? 0 : (span.numel + kChunkNumel - 1) / kChunkNumel;
}

// Chunks [first, past) of the bucket; sums[chunk * num_terms + term]. `one` does a chunk of a tensor.
template <typename function_t>
void chunks_of_thread(const Bucket& bucket, const Call& call, int num_terms, int64_t first,
                      int64_t past, double* sums, const function_t& one) {
  int64_t start = 0;
  for (const Span& span : bucket.spans) {
    if (start >= past) break;
    const int64_t num_chunks = chunks_of(bucket, call, span);
    const int64_t begin = std::max<int64_t>(first - start, 0);
    const int64_t end = std::min(past - start, num_chunks);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t element = i * kChunkNumel;
      one(span, element, std::min<int64_t>(span.numel - element, kChunkNumel),
          sums + (start + i) * num_terms);
    }
    start += num_chunks;
  }
}

// From the first chunk of a tensor to its last.
void add_chunks(const Bucket& bucket, const Call& call, const double* of_chunks, int num_terms,
                double* sums) {
  const auto num_tensors = static_cast<int64_t>(bucket.spans.size());
  std::fill_n(sums, num_terms * num_tensors, 0.0);
  for (int64_t i = 0; i < num_tensors; ++i) {
    const int64_t num_chunks = chunks_of(bucket, call, bucket.spans[static_cast<size_t>(i)]);
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk, of_chunks += num_terms) {
      for (int t = 0; t < num_terms; ++t) sums[t * num_tensors + i] += of_chunks[t];
    }
  }
}

// All chunks; sums[term * num_tensors + tensor]. Where `one` writes, it may stream.
template <typename function_t>
void sum_chunks(const Bucket& bucket, const Call& call, int num_terms, double* sums,
                const function_t& one) {
  int64_t total = 0;
  for (const Span& span : bucket.spans) total += chunks_of(bucket, call, span);
  std::vector<double> of_chunks(static_cast<size_t>(total * num_terms));
  const int num_threads = useful_threads(busy_elements(bucket, call), call.num_threads);
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    const int count = omp_get_num_threads(), index = omp_get_thread_num();
    chunks_of_thread(bucket, call, num_terms, split(total, index, count, 1),
                     split(total, index + 1, count, 1), of_chunks.data(), one);
    finish_streaming();
  }
  add_chunks(bucket, call, of_chunks.data(), num_terms, sums);
}

// Where the loops for a bucket stand: those over small formats use the loops for float32.
int position_of(const Bucket& bucket, const Call& call) {
  if (bucket.is_small()) return wpadamw::position_of(DType::kFloat32, DType::kFloat32);
  return wpadamw::position_of(bucket.param_dtype, call.grad_dtype);
}

// By chunks: a block of codes belongs to one thread.
void run_chunks(const Bucket& bucket, const Call& call, const Loops& loops, const RunTable& table) {
  sum_chunks(bucket, call, 0, nullptr,
             [&](const Span& span, int64_t begin, int64_t n, double*) {
               loops.stored.run(task_of(bucket, call, span), table, operation_on(call, span),
                                source_of(bucket, call, span), begin, begin + n);
             });
}

}  // namespace

void run(const Bucket& bucket, const Call& call, const Loops& loops) {
  const int64_t total = busy_elements(bucket, call);
  if (total == 0) return;
  const RunTable& table = loops.of_rule.run[position_of(bucket, call)];
  if (bucket.is_small()) return run_chunks(bucket, call, loops, table);
  const int num_threads = useful_threads(total, call.num_threads);
  const bool streaming = total * call.param_size > kStreamingBytes;
  if (num_threads == 1) return run_thread(bucket, call, table, 0, total, streaming);
#pragma omp parallel num_threads(num_threads)
  {
    // The runtime may grant fewer threads than asked for.
    const int count = omp_get_num_threads(), index = omp_get_thread_num();
    run_thread(bucket, call, table, split(total, index, count, kBlock),
               split(total, index + 1, count, kBlock), streaming);
  }
}

void sum(const Bucket& bucket, const Call& call, const Loops& loops, int num_terms, double* sums) {
  const SumTable& table = loops.of_rule.sum[position_of(bucket, call)];
  sum_chunks(bucket, call, num_terms, sums,
             [&](const Span& span, int64_t begin, int64_t n, double* of_chunk) {
               const Task task = task_of(bucket, call, span);
               const Sum sum = table.at[static_cast<int>(source_of(bucket, call, span))];
               if (bucket.is_small()) {
                 loops.stored.sum(task, sum, begin, n, of_chunk);
               } else {
                 sum(task, begin, n, of_chunk);
               }
             });
}

void track(const Bucket& bucket, const Call& call, const Loops& loops, double* sums) {
  const auto position = position_of(bucket, call);
  const RunTable& table = loops.of_rule.run[position];
  const bool streaming = busy_elements(bucket, call) * call.param_size > kStreamingBytes;
  sum_chunks(bucket, call, kNumTracked, sums,
             [&](const Span& span, int64_t begin, int64_t n, double* of_chunk) {
               const Task task = task_of(bucket, call, span);
               const Source source = source_of(bucket, call, span);
               if (bucket.is_small()) {
                 loops.stored.track(task, table, call.operation, source, begin, n, of_chunk);
               } else {
                 const auto& runs = table.at[static_cast<size_t>(call.operation)];
                 loops.of_rule.track[position](task, begin, n, runs[static_cast<int>(source)],
                                               streaming, of_chunk);
               }
             });
}

}  // namespace wpadamw::cpu
