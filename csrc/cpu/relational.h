// What the forward and the backward of relational share: the stacks of pairs and the passes.
#pragma once

#include <algorithm>
#include <vector>

#include "conv.h"

namespace abkd {

// How a relation is taken; the forward and the backward choose apart.
constexpr int64_t kLeftOut = -1, kAggregateFirst = 0, kTransformFirst = 1;

// All relations' pairs in one direction; see abkd_fast/_relation_stack.py.
class PairStack {
 public:
  PairStack(const std::vector<Tensor>& stack, std::vector<int64_t> pairs)
      : csr_(part(stack, 0), part(stack, 2)),
        col_(as_contiguous(stack[2])),
        row_(as_contiguous(stack[1])),
        local_(as_contiguous(stack[3])),
        pairs_(std::move(pairs)) {
    STD_TORCH_CHECK(!pairs_.empty() && pairs_.back() == csr_.rows() && row_.numel() == csr_.rows(),
                    "pairs must end at the number of rows of the stack");
    bool ascending = pairs_.front() == 0;
    for (int64_t r = 0; r + 1 < static_cast<int64_t>(pairs_.size()); ++r) {
      ascending &= pairs_[r] <= pairs_[r + 1];
    }
    STD_TORCH_CHECK(ascending, "pairs must ascend from 0");
    STD_TORCH_CHECK(local_.numel() == csr_.edges(), "local must be [E]");
    for (const Tensor& index : {row_, local_}) {
      STD_TORCH_CHECK((index.scalar_type() == ScalarType::Long) == csr_.wide(),
                      "the parts of a stack must have one dtype");
    }
  }

  int64_t relations() const { return static_cast<int64_t>(pairs_.size()) - 1; }
  int64_t count(int64_t r) const { return pairs_[r + 1] - pairs_[r]; }
  int64_t edges() const { return csr_.edges(); }
  int64_t edges(int64_t r) const { return csr_.pointer(pairs_[r + 1]) - csr_.pointer(pairs_[r]); }
  bool wide() const { return csr_.wide(); }

  // Nodes of the relation's pairs.
  const void* rows(int64_t r) const { return at(row_, pairs_[r]); }

  // The relation's edges; the other ends numbered over all nodes, or within the relation.
  Csr csr(int64_t r, bool local) const {
    const Csr all = csr_.view();
    const char* rowptr = static_cast<const char*>(all.rowptr) + pairs_[r] * index();
    return {rowptr, local ? local_.data_ptr() : col_.data_ptr(), wide()};
  }

  SumSchedule schedule(int64_t r, int64_t sources, int64_t width, ScalarType dtype) const {
    const int64_t ahead = prefetch_distance(sources, width, dtype);
    const int64_t edges_r = edges(r);
    const bool is_short = count(r) >= (1 << 13) && edges_r < 8 * count(r);
    return {csr_.pointer(pairs_[r + 1]), ahead, edges_r >= 4 * count(r), ahead == 0 && is_short};
  }

  Ranges ranges(int64_t r) const {
    const int64_t first = pairs_[r];
    const int64_t before = csr_.pointer(first);
    return Ranges(count(r), [&](int64_t i) { return csr_.pointer(first + i) - before; });
  }

 private:
  static const Tensor& part(const std::vector<Tensor>& stack, int64_t i) {
    STD_TORCH_CHECK(stack.size() == 4, "a stack must be [ptr, row, col, local]");
    return stack[i];
  }

  int64_t index() const { return wide() ? sizeof(int64_t) : sizeof(int32_t); }
  const void* at(const Tensor& tensor, int64_t i) const {
    return static_cast<const char*>(tensor.data_ptr()) + i * index();
  }

  CsrTensors csr_;
  Tensor col_, row_, local_;
  std::vector<int64_t> pairs_;
};

inline void check_relations(const PairStack& stack, const PairStack& stack_t, const Tensor& weight,
                            int64_t width, const std::vector<int64_t>& orders, ScalarType dtype) {
  const int64_t relations = stack.relations();
  STD_TORCH_CHECK(stack_t.relations() == relations && stack_t.edges() == stack.edges() &&
                      stack_t.wide() == stack.wide(),
                  "stack_t must hold the edges of stack");
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) == relations && weight.size(1) == width,
                  "weight must be [R, in, out]");
  STD_TORCH_CHECK(weight.scalar_type() == dtype, "weight must have the dtype of x");
  STD_TORCH_CHECK(static_cast<int64_t>(orders.size()) == relations, "orders must be [R]");
}

// Nodes of one type in the result: type, first row in x, count.
struct RootType {
  int64_t type, first, count;
};

inline std::vector<RootType> root_types(const std::vector<int64_t>& roots) {
  std::vector<RootType> types;
  for (size_t i = 0; i + 2 < roots.size(); i += 3) {
    types.push_back({roots[i], roots[i + 1], roots[i + 2]});
  }
  return types;
}

inline int64_t root_rows(const std::vector<int64_t>& roots) {
  int64_t rows = 0;
  for (const RootType& root : root_types(roots)) {
    rows += root.count;
  }
  return rows;
}

// Checks what every type of node is transformed with; `largest` type counts from 0.
inline void check_roots(const std::vector<RootType>& types, const Tensor& x,
                        const OptionalTensor& x_root, const OptionalTensor& root,
                        const OptionalTensor& bias, int64_t width_out, ScalarType dtype) {
  const Tensor& input = x_root.has_value() ? *x_root : x;
  check_matrix("x_root", input, dtype);
  STD_TORCH_CHECK(!types.empty(), "roots must hold a type");
  int64_t largest = 0;
  for (const RootType& type : types) {
    STD_TORCH_CHECK(type.type >= 0 && type.first >= 0 && type.count >= 0, "roots must be >= 0");
    STD_TORCH_CHECK(!root.has_value() || type.count <= input.size(0) - type.first,
                    "roots must lie within the ", input.size(0), " rows that are transformed, got ",
                    type.count, " from row ", type.first);
    largest = std::max(largest, type.type);
  }
  if (root.has_value()) {
    STD_TORCH_CHECK(root->scalar_type() == dtype, "root must have the dtype of x");
    STD_TORCH_CHECK(root->dim() == 3 && root->size(0) > largest && root->size(1) == input.size(1) &&
                        root->size(2) == width_out,
                    "root must be [types, in, out]");
  }
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->scalar_type() == dtype, "bias must have the dtype of x");
    STD_TORCH_CHECK(bias->dim() == 2 && bias->size(0) > largest && bias->size(1) == width_out,
                    "bias must be [types, out]");
  }
}

template <typename T>
std::vector<T> transposed_matrix(const T* matrix, int64_t rows, int64_t columns) {
  std::vector<T> result(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      result[j * rows + i] = matrix[i * columns + j];
    }
  }
  return result;
}

// Runs a pass over a relation's ranges, with partial sums where they are wanted.
template <typename T>
void run_pass(const RelationalPass& pass, const Ranges& ranges, int64_t work,
              std::vector<double>* sums = nullptr, std::vector<T>* dweight = nullptr) {
  const int64_t widths = pass.width + pass.features_width + pass.width_out;
  const int64_t scratch = relational_block_rows(pass, sizeof(T)) * widths;
  ranges.run(dense_kernels().relational, pass, scratch, sums, dweight, work);
}

}  // namespace abkd
