// Checks of operator arguments. The public functions check first, with friendlier messages;
// these keep shapes and dtypes of a direct call of torch.ops straight. Index values are not read:
// CSRGraph checks them once, on construction.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "cpu/dispatch.h"

namespace abkd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype feature_dtype(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
  }
}

inline ScalarType accumulation_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline int64_t bytes_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    case ScalarType::Byte:
      return 1;
    default:
      STD_TORCH_CHECK(false, "no result has this dtype");
  }
}

inline void check_matrix(const char* name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.dim() == 2, name, " must have 2 dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must have the dtype of x");
}

inline void check_size(const char* name, const Tensor& tensor, int64_t dim, int64_t size) {
  STD_TORCH_CHECK(tensor.size(dim) == size, name, ".size(", dim, ") must be ", size, ", got ",
                  tensor.size(dim));
}

// torch::stable::contiguous goes through the dispatcher even where there is nothing to do.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The CSR arrays, contiguous and alive, with their sizes; or segments of consecutive rows, which
// have no columns.
class CsrTensors {
 public:
  CsrTensors(const Tensor& rowptr, const Tensor& col)
      : rowptr_(as_contiguous(rowptr)), col_(as_contiguous(col)) {
    STD_TORCH_CHECK(rowptr_.dim() == 1 && rowptr_.numel() > 0, "rowptr must be [num_dst + 1]");
    STD_TORCH_CHECK(col_->dim() == 1, "col must be [E]");
    const ScalarType dtype = rowptr_.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Long,
                    "rowptr must be int32 or int64");
    STD_TORCH_CHECK(col_->scalar_type() == dtype, "col must have the dtype of rowptr");
    edges_ = col_->numel();
    if (rowptr_.is_cpu()) {  // a device's last pointer would cost a wait
      STD_TORCH_CHECK(pointer(0) == 0 && pointer(rows()) <= edges_, "rowptr must go from 0 to ",
                      edges_, ", the size of col, or less, got ", pointer(0), " to ",
                      pointer(rows()));
    }
  }

  // Segments of `size` rows. Unlike a graph's, these pointers were not checked before.
  CsrTensors(const Tensor& indptr, int64_t size) : rowptr_(as_contiguous(indptr)), edges_(size) {
    STD_TORCH_CHECK(rowptr_.dim() == 1 && rowptr_.numel() > 0, "indptr must be [num_segments + 1]");
    STD_TORCH_CHECK(wide(), "indptr must be int64");
    const int64_t* pointers = static_cast<const int64_t*>(rowptr_.data_ptr());
    bool ascending = pointers[0] >= 0 && pointers[rows()] <= size;
    for (int64_t i = 0; i < rows(); ++i) {
      ascending &= pointers[i] <= pointers[i + 1];
    }
    STD_TORCH_CHECK(ascending, "indptr must ascend from 0 or more to src.size(0) = ", size,
                    " or less");
  }

  // For results that have an entry an edge. Others may read the first rows of a larger matrix.
  void check_all_edges() const {
    STD_TORCH_CHECK(pointer(rows()) == edges_, "rowptr must end at ", edges_,
                    ", the size of col, got ", pointer(rows()));
  }

  int64_t rows() const { return rowptr_.numel() - 1; }
  int64_t edges() const { return edges_; }
  bool wide() const { return rowptr_.scalar_type() == ScalarType::Long; }
  Csr view() const {
    return {rowptr_.data_ptr(), col_.has_value() ? col_->data_ptr() : nullptr, wide(),
            !col_.has_value()};
  }
  int64_t pointer(int64_t row) const {
    return wide() ? static_cast<const int64_t*>(rowptr_.data_ptr())[row]
                  : static_cast<const int32_t*>(rowptr_.data_ptr())[row];
  }

 private:
  Tensor rowptr_;
  std::optional<Tensor> col_;
  int64_t edges_;
};

}  // namespace abkd
