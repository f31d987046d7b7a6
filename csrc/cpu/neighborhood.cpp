// What a model of L layers reads for some nodes: the rows of the operator within L - 1 hops, and
// the rows of sparse features. Cost and memory are those of the neighbourhood.

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "parallel.h"

namespace abkd {
namespace {

Tensor from_host(const void* data, int64_t count, ScalarType dtype) {
  Tensor out = torch::stable::empty({count}, dtype);
  if (count > 0) {
    std::memcpy(out.data_ptr(), data, count * bytes_of(dtype));
  }
  return out;
}

// rowptr and the entries of rows `chosen` of a CSR matrix, one after the other.
template <typename Index>
class RowCopy {
 public:
  RowCopy(const Tensor& rowptr, const int64_t* chosen, int64_t rows)
      : from_(static_cast<const Index*>(rowptr.data_ptr())), chosen_(chosen), to_(rows + 1) {
    constexpr int64_t kMost = std::numeric_limits<Index>::max();
    int64_t count = 0;  // rows that repeat may have more entries than their matrix
    for (int64_t i = 0; i < rows; ++i) {
      count += from_[chosen[i] + 1] - from_[chosen[i]];
      STD_TORCH_CHECK(count <= kMost, "rows must have at most ", kMost,
                      " entries, which the index dtype can count; ask for fewer rows");
      to_[i + 1] = static_cast<Index>(count);
    }
  }

  // Of these and of empty rows behind them, `rows` in all.
  Tensor pointers(ScalarType dtype, int64_t rows) const {
    Tensor out = torch::stable::empty({rows + 1}, dtype);
    auto* target = static_cast<Index*>(out.data_ptr());
    std::fill(std::copy(to_.begin(), to_.end(), target), target + rows + 1, to_.back());
    return out;
  }

  Tensor entries(const Tensor& entries) const {
    const auto rows = static_cast<int64_t>(to_.size()) - 1;
    const int64_t bytes = bytes_of(entries.scalar_type());
    Tensor out = torch::stable::empty({static_cast<int64_t>(to_.back())}, entries.scalar_type());
    if (to_.back() == 0) {
      return out;  // memcpy wants addresses for no bytes too
    }
    const auto* source = static_cast<const char*>(entries.data_ptr());
    auto* target = static_cast<char*>(out.data_ptr());
    parallel_ranges(rows, parts_for(to_.back(), 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::memcpy(target + to_[i] * bytes, source + from_[chosen_[i]] * bytes,
                    (to_[i + 1] - to_[i]) * bytes);
      }
    });
    return out;
  }

 private:
  const Index* from_;
  const int64_t* chosen_;
  std::vector<Index> to_;
};

// Breadth-first search. `positions` holds -1 for every node before, and again afterwards.
template <typename Index>
class Search {
 public:
  Search(const CsrTensors& csr, const Tensor& rowptr, const Tensor& col, Index* positions)
      : rows_(csr.rows()),
        rowptr_(static_cast<const Index*>(rowptr.data_ptr())),
        col_(static_cast<const Index*>(col.data_ptr())),
        positions_(positions) {}

  ~Search() {
    for (const int64_t node : nodes_) {
      positions_[node] = -1;
    }
  }

  void start(const Tensor& nodes) {
    const auto* given = static_cast<const int64_t*>(nodes.data_ptr());
    for (int64_t i = 0; i < nodes.numel(); ++i) {
      const int64_t node = given[i];
      STD_TORCH_CHECK(node >= 0 && node < rows_, "nodes must lie in [0, ", rows_, "), got ", node);
      STD_TORCH_CHECK(positions_[node] < 0, "nodes must be distinct, got ", node, " twice");
      visit(node);
    }
    sizes_.push_back(nodes.numel());
  }

  // Reads the rows that the hop before found.
  void hop() {
    const auto end = static_cast<int64_t>(nodes_.size());
    for (; read_ < end; ++read_) {
      const int64_t row = nodes_[read_];
      for (Index e = rowptr_[row]; e < rowptr_[row + 1]; ++e) {
        const Index node = col_[e];
        STD_TORCH_CHECK(node >= 0 && node < rows_, "col must lie in [0, ", rows_, "), got ", node);
        if (positions_[node] < 0) {
          visit(node);
        }
        STD_TORCH_CHECK(known(node), "positions must be -1 before, got another value of node ",
                        node);
        local_.push_back(positions_[node]);
      }
    }
    sizes_.push_back(static_cast<int64_t>(nodes_.size()));
  }

  const std::vector<int64_t>& nodes() const { return nodes_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<Index>& local() const { return local_; }
  int64_t rows_read() const { return read_; }

 private:
  bool known(int64_t node) const {
    const auto at = static_cast<size_t>(positions_[node]);
    return at < nodes_.size() && nodes_[at] == node;
  }

  void visit(int64_t node) {
    nodes_.push_back(node);  // first: what fails here leaves no position behind
    positions_[node] = static_cast<Index>(nodes_.size()) - 1;
  }

  int64_t rows_;
  const Index* rowptr_;
  const Index* col_;
  Index* positions_;
  int64_t read_ = 0;
  std::vector<int64_t> nodes_;
  std::vector<int64_t> sizes_;
  std::vector<Index> local_;
};

using Rows = std::tuple<Tensor, Tensor, Tensor>;
using Found = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename Index>
Found search(const CsrTensors& csr, const Tensor& rowptr, const Tensor& col,
             const std::optional<Tensor>& value, const Tensor& nodes, int64_t num_hops,
             const Tensor& positions) {
  Search<Index> found(csr, rowptr, col, static_cast<Index*>(positions.data_ptr()));
  found.start(nodes);
  for (int64_t hop = 0; hop < num_hops; ++hop) {
    found.hop();
  }
  const auto count = static_cast<int64_t>(found.nodes().size());
  const RowCopy<Index> rows(rowptr, found.nodes().data(), found.rows_read());
  const auto edges = static_cast<int64_t>(found.local().size());
  const auto hops = static_cast<int64_t>(found.sizes().size());
  return {from_host(found.nodes().data(), count, ScalarType::Long),
          from_host(found.sizes().data(), hops, ScalarType::Long),
          rows.pointers(rowptr.scalar_type(), count),
          from_host(found.local().data(), edges, rowptr.scalar_type()),
          value.has_value() ? rows.entries(*value) : from_host(nullptr, 0, ScalarType::Float)};
}

std::optional<Tensor> weights(const std::optional<Tensor>& value, const CsrTensors& csr) {
  if (!value.has_value()) {
    return value;
  }
  STD_TORCH_CHECK(value->dim() == 1 && value->numel() == csr.edges(), "value must be [E]");
  return as_contiguous(*value);
}

Found neighborhood_cpu(Tensor rowptr, Tensor col, std::optional<Tensor> value, Tensor nodes,
                       int64_t num_hops, Tensor positions) {
  const CsrTensors csr(rowptr, col);
  STD_TORCH_CHECK(nodes.dim() == 1 && nodes.scalar_type() == ScalarType::Long,
                  "nodes must be [B] int64");
  STD_TORCH_CHECK(positions.dim() == 1 && positions.numel() == csr.rows() &&
                      positions.scalar_type() == rowptr.scalar_type() && positions.is_contiguous(),
                  "positions must be [N] of the index dtype, contiguous");
  const auto run = csr.wide() ? search<int64_t> : search<int32_t>;
  return run(csr, as_contiguous(rowptr), as_contiguous(col), weights(value, csr),
             as_contiguous(nodes), num_hops, positions);
}

template <typename Index>
Rows select(const Tensor& rowptr, const Tensor& col, const std::optional<Tensor>& value,
            const Tensor& rows) {
  const RowCopy<Index> copy(rowptr, static_cast<const int64_t*>(rows.data_ptr()), rows.numel());
  return {copy.pointers(rowptr.scalar_type(), rows.numel()), copy.entries(col),
          value.has_value() ? copy.entries(*value) : from_host(nullptr, 0, ScalarType::Float)};
}

Rows select_rows_cpu(Tensor rowptr, Tensor col, std::optional<Tensor> value, Tensor rows) {
  const CsrTensors csr(rowptr, col);
  STD_TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == ScalarType::Long,
                  "rows must be [R] int64");
  rows = as_contiguous(rows);
  const auto* chosen = static_cast<const int64_t*>(rows.data_ptr());
  for (int64_t i = 0; i < rows.numel(); ++i) {
    STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < csr.rows(), "rows must lie in [0, ", csr.rows(),
                    "), got ", chosen[i]);
  }
  const auto run = csr.wide() ? select<int64_t> : select<int32_t>;
  return run(as_contiguous(rowptr), as_contiguous(col), weights(value, csr), rows);
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("neighborhood", TORCH_BOX(&abkd::neighborhood_cpu));
  m.impl("select_rows", TORCH_BOX(&abkd::select_rows_cpu));
}
