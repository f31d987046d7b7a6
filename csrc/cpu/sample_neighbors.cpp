// Layer-wise neighbour sampling on the CPU: which edges a row keeps depends on the row, the hop,
// the seed and the step alone, never on the batch or the number of threads.

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "dropout.h"
#include "parallel.h"

namespace abkd {
namespace {

// Positions of nodes in the sample: open addressing, at most half full.
class Positions {
 public:
  // The position of `node`, or `next`, which it then has.
  int64_t find_or_add(int64_t node, int64_t next) {
    if (2 * (next + 1) > static_cast<int64_t>(slots_.size())) {
      grow();
    }
    Slot& slot = find(node);
    if (slot.node < 0) {
      slot = {node, next};
    }
    return slot.position;
  }

 private:
  struct Slot {
    int64_t node = -1;
    int64_t position = 0;
  };

  Slot& find(int64_t node) {
    const size_t last = slots_.size() - 1;
    size_t at = (static_cast<uint64_t>(node) * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[at].node >= 0 && slots_[at].node != node) {
      at = (at + 1) & last;
    }
    return slots_[at];
  }

  void grow() {
    std::vector<Slot> before(2 * slots_.size());
    before.swap(slots_);
    --shift_;
    for (const Slot& slot : before) {
      if (slot.node >= 0) {
        find(slot.node) = slot;
      }
    }
  }

  std::vector<Slot> slots_ = std::vector<Slot>(1 << 10);
  int shift_ = 64 - 10;
};

// The edges of one row, counted from its first: `count` of `degree`, ascending. Without
// replacement by Floyd's algorithm (Bentley, Floyd: A sample of brilliance, CACM 1987).
void choose(const uint32_t* words, int64_t degree, int64_t count, bool replace, int64_t* chosen) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t limit = replace ? degree : degree - count + i + 1;
    const auto drawn =
        static_cast<int64_t>((uint64_t{words[i]} * static_cast<uint64_t>(limit)) >> 32);
    const bool taken = !replace && std::find(chosen, chosen + i, drawn) != chosen + i;
    chosen[i] = taken ? limit - 1 : drawn;
  }
  std::sort(chosen, chosen + count);
}

// How the neighbours of a row are drawn; all of them are taken where `limit` is negative.
struct Draw {
  int64_t limit;
  bool replace;
  DropoutMask random;

  // Whether edges of a row of this degree are left to chance, and how many it keeps.
  bool chooses(int64_t degree) const {
    return limit >= 0 && (replace ? degree > 0 : degree > limit);
  }
  int64_t count(int64_t degree) const { return chooses(degree) ? limit : degree; }
};

class Sampler {
 public:
  Sampler(const CsrTensors& csr, const Tensor& col, const Tensor& seeds) : csr_(csr), col_(col) {
    const auto* given = static_cast<const int64_t*>(seeds.data_ptr());
    for (int64_t i = 0; i < seeds.numel(); ++i) {
      STD_TORCH_CHECK(given[i] >= 0 && given[i] < csr.rows(), "nodes must lie in [0, ", csr.rows(),
                      "), got ", given[i]);
      const bool first = positions_.find_or_add(given[i], i) == i;
      STD_TORCH_CHECK(first, "nodes must be distinct, got ", given[i], " twice");
      nodes_.push_back(given[i]);
    }
  }

  // Adds the rows of the nodes that the hop before found.
  void hop(const Draw& draw) {
    const int64_t begin = static_cast<int64_t>(rowptr_.size()) - 1;
    const auto end = static_cast<int64_t>(nodes_.size());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t node = nodes_[row];
      STD_TORCH_CHECK(node >= 0 && node < csr_.rows(), "nodes must lie in [0, ", csr_.rows(),
                      "), got ", node);
      rowptr_.push_back(rowptr_.back() + draw.count(degree(row)));
    }
    STD_TORCH_CHECK(csr_.wide() || rowptr_.back() <= std::numeric_limits<int32_t>::max(),
                    "a sample must have fewer than 2^31 edges, which int32 can count, got ",
                    rowptr_.back(), "; ask for fewer neighbours or a graph of int64 indices");
    edges_.resize(rowptr_.back());
    parallel_ranges(end - begin, parts_for(end - begin, kRowCost),
                    [&](int64_t first, int64_t stop) {
                      for (int64_t row = begin + first; row < begin + stop; ++row) {
                        fill(row, draw);
                      }
                    });
    for (int64_t e = rowptr_[begin]; e < rowptr_[end]; ++e) {
      const auto next = static_cast<int64_t>(nodes_.size());
      const int64_t node = source(edges_[e]);
      const int64_t position = positions_.find_or_add(node, next);
      if (position == next) {
        nodes_.push_back(node);
      }
      local_.push_back(position);
    }
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> result() {
    rowptr_.resize(nodes_.size() + 1, rowptr_.back());
    const ScalarType index = csr_.wide() ? ScalarType::Long : ScalarType::Int;
    return {copied(nodes_, ScalarType::Long), copied(rowptr_, index), copied(local_, index),
            copied(edges_, ScalarType::Long)};
  }

 private:
  static constexpr int64_t kRowCost = 64;  // of drawing a row, in multiply-adds

  int64_t degree(int64_t row) const {
    return csr_.pointer(nodes_[row] + 1) - csr_.pointer(nodes_[row]);
  }

  void fill(int64_t row, const Draw& draw) {
    int64_t* chosen = edges_.data() + rowptr_[row];
    const int64_t count = rowptr_[row + 1] - rowptr_[row];
    if (draw.chooses(degree(row))) {
      std::vector<uint32_t> words(count);
      const auto counters = static_cast<uint64_t>((count + 3) / 4);
      const uint64_t first = static_cast<uint64_t>(nodes_[row]) * counters;
      dense_kernels().random_words(draw.random, first, count, words.data());
      choose(words.data(), degree(row), count, draw.replace, chosen);
    } else {
      std::iota(chosen, chosen + count, int64_t{0});
    }
    const int64_t offset = csr_.pointer(nodes_[row]);
    std::for_each(chosen, chosen + count, [offset](int64_t& edge) { edge += offset; });
  }

  int64_t source(int64_t edge) const {
    return csr_.wide() ? static_cast<const int64_t*>(col_.data_ptr())[edge]
                       : static_cast<const int32_t*>(col_.data_ptr())[edge];
  }

  static Tensor copied(const std::vector<int64_t>& from, ScalarType dtype) {
    Tensor out = torch::stable::empty({static_cast<int64_t>(from.size())}, dtype);
    if (dtype == ScalarType::Long) {
      std::copy(from.begin(), from.end(), static_cast<int64_t*>(out.data_ptr()));
    } else {
      std::transform(from.begin(), from.end(), static_cast<int32_t*>(out.data_ptr()),
                     [](int64_t value) { return static_cast<int32_t>(value); });
    }
    return out;
  }

  const CsrTensors& csr_;
  Tensor col_;
  Positions positions_;
  std::vector<int64_t> nodes_;
  std::vector<int64_t> rowptr_ = {0};
  std::vector<int64_t> local_;
  std::vector<int64_t> edges_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_neighbors_cpu(Tensor rowptr, Tensor col,
                                                                Tensor nodes,
                                                                std::vector<int64_t> num_neighbors,
                                                                bool replace, Tensor seed,
                                                                int64_t step) {
  STD_TORCH_CHECK(nodes.dim() == 1 && nodes.scalar_type() == ScalarType::Long,
                  "nodes must be [B] int64");
  const CsrTensors csr(rowptr, col);
  Sampler sampler(csr, as_contiguous(col), as_contiguous(nodes));
  int64_t hop = 0;
  for (const int64_t limit : num_neighbors) {
    sampler.hop({limit, replace, dropout_mask(0, seed, hop++, step)});
  }
  return sampler.result();
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("sample_neighbors", TORCH_BOX(&abkd::sample_neighbors_cpu));
}
