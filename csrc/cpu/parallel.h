// A CSR matrix shared out over threads: by rows and edges, so that a hub does not fall to a thread
// that has its full share of rows already, and inside rows that are longer than a share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

// How many threads `items` of `width` multiply-adds each are worth.
inline int64_t parts_for(int64_t items, int64_t width) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::min(threads, items * std::max<int64_t>(width, 1) / kGrain + 1);
}

// Calls run(begin, end) for consecutive ranges of [0, size), one a thread.
template <typename Run>
void parallel_ranges(int64_t size, int64_t parts, const Run& run) {
  if (parts == 1) {
    run(0, size);
    return;
  }
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    run(size * begin / parts, size * end / parts);
  });
}

// Calls run(begin, end) for consecutive row ranges of about equal cost.
template <typename Run>
void parallel_rows(const CsrTensors& csr, int64_t width, const Run& run) {
  const int64_t total = csr.rows() + csr.edges();
  const int64_t parts = parts_for(total, width);
  const auto boundary = [&](int64_t part) {
    return part == parts ? csr.rows() : row_at(csr, total / parts * part);
  };
  parallel_ranges(parts, parts,
                  [&](int64_t begin, int64_t end) { run(boundary(begin), boundary(end)); });
}

// Rows are summed in chunks of kChunk edges: what lies between two threads' shares is a row or,
// in a longer row, a chunk. Which sums are formed thus depends on the graph alone.
class SharedRows {
 public:
  SharedRows(const CsrTensors& csr, int64_t parts) : csr_(csr) {
    const int64_t total = csr.rows() + csr.edges();
    cuts_.push_back({0, 0});
    for (int64_t part = 1; part < parts; ++part) {
      cuts_.push_back(cut_at(total / parts * part));
      const Cut& cut = cuts_.back();
      if (cut.chunk > 0 && (split_.empty() || split_.back() != cut.row)) {
        split_.push_back(cut.row);
      }
    }
    cuts_.push_back({csr.rows(), 0});
  }

  // Rows that several threads share, in ascending order.
  const std::vector<int64_t>& split() const { return split_; }

  int64_t chunks(int64_t row) const {
    return (csr_.pointer(row + 1) - csr_.pointer(row) + kChunk - 1) / kChunk;
  }

  // Calls rows(begin, end) and chunks(row, first chunk, last chunk) for a share. Rows of split() go
  // through chunks() alone.
  template <typename Rows, typename Chunks>
  void visit(int64_t share, const Rows& rows, const Chunks& chunks) const {
    Cut from = cuts_[share];
    const Cut to = cuts_[share + 1];
    if (from.row < to.row && from.chunk > 0) {
      chunks(from.row, from.chunk, this->chunks(from.row));
      from = {from.row + 1, 0};
    }
    if (from.row < to.row) {
      rows(from.row, to.row);
      from = {to.row, 0};
    }
    if (from.chunk < to.chunk) {
      chunks(to.row, from.chunk, to.chunk);
    }
  }

 private:
  struct Cut {
    int64_t row;
    int64_t chunk;
  };

  Cut cut_at(int64_t target) const {
    const int64_t row = row_at(csr_, target);
    if (row == 0) {
      return {0, 0};
    }
    // The target lies in the row before.
    const int64_t before = row - 1;
    if (chunks(before) <= 1) {
      return {row, 0};
    }
    const int64_t chunk = (target - csr_.pointer(before) - before) / kChunk;
    return {before, std::min(chunk, chunks(before) - 1)};
  }

  const CsrTensors& csr_;
  std::vector<Cut> cuts_;
  std::vector<int64_t> split_;
};

}  // namespace abkd
