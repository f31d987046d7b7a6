// The host side of sums over rows, for spmm and for segment reductions.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "memory.h"
#include "parallel.h"

namespace abkd {

// A float kernel counts the edges of a row in 32-bit lanes.
inline void check_degrees(const CsrTensors& csr) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  for (int64_t i = 0; csr.edges() > kMost && i < csr.rows(); ++i) {
    STD_TORCH_CHECK(csr.pointer(i + 1) - csr.pointer(i) <= kMost, "row ", i,
                    " has 2^31 edges or more");
  }
}

// How many edges ahead to ask for a source's features. Below the size of a second-level cache the
// processor finds them in time by itself.
inline int64_t prefetch_distance(int64_t sources, int64_t width, ScalarType dtype) {
  constexpr int64_t kCached = 8 << 20;  // bytes
  constexpr int64_t kLines = 256;       // under way at a time
  const int64_t row = width * bytes_of(dtype);
  if (sources * row <= kCached) {
    return 0;
  }
  return std::clamp<int64_t>(kLines * 64 / row, 16, 64);
}

// Of thousands of rows of a few edges no branch predictor remembers the lengths. Taken out of
// order, longer rows lose more to the broken stream of columns than they gain.
inline bool short_rows(const CsrTensors& csr) {
  return csr.rows() >= (1 << 13) && csr.edges() < 8 * csr.rows();
}

// Whether a slice of the columns is read over all rows before the next: where x is far larger than
// a slice, which comes from the second-level cache and the near part of the last. Measured on
// Intel's processors only, whose second-level cache is large and whose last level answers late.
inline bool in_slices(int64_t sources, int64_t width, ScalarType dtype) {
  const int64_t row = width * bytes_of(dtype);
  return made_by_intel() && row > kSlice && sources * row > (4 << 20) &&
         sources * kSlice <= (8 << 20);
}

inline SumSchedule sum_schedule(const CsrTensors& csr, int64_t sources, int64_t width,
                                ScalarType dtype) {
  const int64_t ahead = prefetch_distance(sources, width, dtype);
  return {csr.edges(), ahead, csr.edges() >= 4 * csr.rows(), ahead == 0 && short_rows(csr)};
}

// Fills all rows of args.out with sums or means, in several threads where it pays.
inline void sum_rows(const SpmmArgs& args, const CsrTensors& csr, ScalarType dtype) {
  const int64_t parts = parts_for(csr.rows() + csr.edges(), args.width);
  if (parts == 1) {
    spmm_kernels().spmm(args, 0, csr.rows());
    return;
  }
  const SharedRows shared(csr, parts);
  std::vector<int64_t> offset = {0};
  for (const int64_t row : shared.split()) {
    offset.push_back(offset.back() + shared.chunks(row));
  }
  const int64_t bytes = args.width * bytes_of(accumulation_dtype(dtype));
  const Tensor scratch = empty_output({offset.back() * bytes}, ScalarType::Byte);
  char* const sums = static_cast<char*>(scratch.data_ptr());
  const auto rows = [&](int64_t begin, int64_t end) { spmm_kernels().spmm(args, begin, end); };
  const auto chunks = [&](int64_t row, int64_t from, int64_t to) {
    const auto& split = shared.split();
    const int64_t slot = offset[std::lower_bound(split.begin(), split.end(), row) - split.begin()];
    for (int64_t chunk = from; chunk < to; ++chunk) {
      const int64_t first = csr.pointer(row) + chunk * kChunk;
      const int64_t stop = std::min(first + kChunk, csr.pointer(row + 1));
      spmm_kernels().spmm_chunk(args, first, stop, sums + (slot + chunk) * bytes);
    }
  };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {  // several where OpenMP grants fewer threads
      shared.visit(part, rows, chunks);
    }
  });
  for (size_t k = 0; k < shared.split().size(); ++k) {
    spmm_kernels().spmm_add_chunks(args, shared.split()[k], sums + offset[k] * bytes,
                                   offset[k + 1] - offset[k]);
  }
}

}  // namespace abkd
