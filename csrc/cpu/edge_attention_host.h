// What both kinds of attention share on the host: checks, blocks, ranges of rows.
#pragma once

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "conv.h"
#include "edge_attention.h"

namespace abkd {

inline Tensor checked_rows(const char* name, const Tensor& tensor, int64_t rows, int64_t heads,
                           int64_t width, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.dim() == 3, name, " must have 3 dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must have the dtype of x");
  check_size(name, tensor, 0, rows);
  check_size(name, tensor, 1, heads);
  check_size(name, tensor, 2, width);
  return as_contiguous(tensor);
}

inline Tensor checked_order(const Tensor& perm, int64_t edges) {
  STD_TORCH_CHECK(perm.scalar_type() == ScalarType::Long && perm.numel() == edges,
                  "perm must be int64 [E]");
  return as_contiguous(perm);
}

// The pass's graph, and blocks of it: scores of a few hundred edges, and of GATv2 the features that
// its second look finds in the cache.
inline void set_graph(AttentionPass* pass, const CsrTensors& csr, int64_t sources, ScalarType dtype,
                      bool features) {
  constexpr int64_t kScores = 1 << 12;
  constexpr int64_t kBytes = 1 << 18;
  const int64_t row = std::max<int64_t>(pass->heads * pass->width * bytes_of(dtype), 1);
  const int64_t most = features ? std::max<int64_t>(kBytes / row, 1) : kScores;
  const int64_t heads = std::max<int64_t>(pass->heads, 1);
  pass->csr = csr.view();
  pass->edges = csr.edges();
  pass->block = std::clamp<int64_t>(std::min(kScores / heads, most), 16, 256);
  pass->capacity = pass->block;
  for (int64_t i = 0; i < csr.rows(); ++i) {
    pass->capacity = std::max(pass->capacity, csr.pointer(i + 1) - csr.pointer(i));
  }
  pass->ahead = prefetch_distance(sources, pass->heads * pass->width, dtype);
}

// A row is one thread's: unlike a sum, its softmax takes three looks at its edges, and chunks of it
// would need their maxima and sums merged between them. Tried on 400,000 edges of 50,000 nodes, 8
// heads of 8, forward and backward on two threads: with half of all edges in one row the busier
// thread works 25 of 47 ms, with nine tenths 37 of 55. The longest rows of Cora, PubMed and
// ogbn-arxiv have 1.3, 0.2 and 0.5 % of the edges.
//
// Runs a kernel over all rows, and adds up what its ranges leave: `parts` sums [H, C] each.
inline Tensor run_pass(AttentionKernels::Kernel kernel, const AttentionPass& pass,
                       const Ranges& ranges, int64_t parts, ScalarType dtype) {
  const int64_t size = parts * pass.heads * pass.width;
  std::vector<double> sums(ranges.count() * size);
  std::vector<char>* const no_dweight = nullptr;
  const int64_t scratch = attention_space(pass.capacity, pass.heads, pass.width, bytes_of(dtype));
  const int64_t work = (pass.edges + 1) * pass.heads * pass.width;
  ranges.run(kernel, pass, scratch, &sums, no_dweight, work);
  const std::vector<int64_t> shape = {parts, pass.heads, pass.width};
  return dtype == ScalarType::Double ? reduced<double>(sums, size, 1, dtype, shape)
                                     : reduced<float>(sums, size, 1, dtype, shape);
}

// A copy of sums[part]: results of an operator must not share memory.
inline Tensor part_of(const Tensor& sums, int64_t part) {
  Tensor result = matrix(sums.size(1), sums.size(2), sums.scalar_type());
  const int64_t bytes = result.numel() * bytes_of(sums.scalar_type());
  if (bytes > 0) {
    memcpy(result.data_ptr(), static_cast<const char*>(sums.data_ptr()) + part * bytes, bytes);
  }
  return result;
}

}  // namespace abkd
