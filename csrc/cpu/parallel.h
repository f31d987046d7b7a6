// Rows of a CSR matrix shared out over threads by edges, so that a hub does not fall to a thread
// that has its full share of rows already.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../check.h"

namespace abkd {

// Multiply-adds below which waking a thread costs more than it saves.
constexpr int64_t kGrain = 1 << 16;

// The first row whose edges and rows before it number at least `target`.
inline int64_t row_at(const CsrTensors& csr, int64_t target) {
  int64_t low = 0;
  int64_t high = csr.rows();
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (csr.pointer(middle) + middle < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Calls run(begin, end) for consecutive row ranges of about equal cost.
template <typename Run>
void parallel_rows(const CsrTensors& csr, int64_t width, const Run& run) {
  const int64_t total = csr.rows() + csr.edges();
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::min(threads, total * std::max<int64_t>(width, 1) / kGrain + 1);
  if (parts == 1) {
    run(0, csr.rows());
    return;
  }
  const auto boundary = [&](int64_t part) {
    return part == parts ? csr.rows() : row_at(csr, total / parts * part);
  };
  torch::stable::parallel_for(
      0, parts, 1, [&](int64_t begin, int64_t end) { run(boundary(begin), boundary(end)); });
}

}  // namespace abkd
