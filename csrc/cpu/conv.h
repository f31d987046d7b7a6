// What the forward and the backward of conv share: checks, folded weights, ranges of rows.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "dropout.h"
#include "memory.h"
#include "parallel.h"
#include "sum_rows.h"

namespace abkd {

using OptionalTensor = std::optional<Tensor>;

inline Tensor matrix(int64_t rows, int64_t width, ScalarType dtype) {
  return empty_output({rows, width}, dtype);
}

inline Tensor nothing(ScalarType dtype) { return torch::stable::empty({0}, dtype); }

inline const void* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->data_ptr() : nullptr;
}

inline Tensor checked(const char* name, const Tensor& tensor, int64_t rows, int64_t width,
                      ScalarType dtype) {
  check_matrix(name, tensor, dtype);
  check_size(name, tensor, 0, rows);
  check_size(name, tensor, 1, width);
  return torch::stable::contiguous(tensor);
}

inline OptionalTensor checked_vector(const char* name, const OptionalTensor& tensor, int64_t size,
                                     ScalarType dtype) {
  if (!tensor.has_value()) {
    return std::nullopt;
  }
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->numel() == size, name, " must be [", size, "]");
  STD_TORCH_CHECK(tensor->scalar_type() == dtype, name, " must have the dtype of x");
  return torch::stable::contiguous(*tensor);
}

inline std::optional<DropoutMask> checked_mask(double p, const OptionalTensor& seed, int64_t layer,
                                               int64_t step) {
  if (p == 0) {
    return std::nullopt;
  }
  STD_TORCH_CHECK(seed.has_value(), "seed must be given where p > 0");
  return dropout_mask(p, *seed, layer, step);
}

inline void check_weight(const Tensor& weight, double beta, ScalarType dtype) {
  check_matrix("weight", weight, dtype);
  STD_TORCH_CHECK(weight.numel() > 0, "weight must not be empty");
  STD_TORCH_CHECK(beta == 1 || weight.size(0) == weight.size(1), "weight must be square");
}

// scale * ((1 - beta) I + beta W), [in, out]; transposed, [out, in].
template <typename T>
std::vector<T> folded(const Tensor& weight, double beta, double scale, bool transposed) {
  const int64_t width = weight.size(0);
  const int64_t width_out = weight.size(1);
  const T* data = static_cast<const T*>(weight.data_ptr());
  const int64_t rows = transposed ? width_out : width;
  const int64_t columns = transposed ? width : width_out;
  const int64_t down = weight.stride(transposed ? 1 : 0);
  const int64_t right = weight.stride(transposed ? 0 : 1);
  const T factor = static_cast<T>(scale * beta);
  std::vector<T> result(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      result[i * columns + j] = factor * data[i * down + j * right];
    }
    if (beta != 1) {
      result[i * columns + i] += static_cast<T>(scale * (1 - beta));
    }
  }
  return result;
}

// Ranges of rows with a partial sum each. Their number and borders depend on the graph alone, so
// results do not depend on the number of threads.
class Ranges {
 public:
  explicit Ranges(int64_t rows) : Ranges(rows, [](int64_t) { return 0; }) {}
  explicit Ranges(const CsrTensors& csr)
      : Ranges(csr.rows(), [&](int64_t row) { return csr.pointer(row); }) {}

  template <typename Pointer>
  Ranges(int64_t rows, const Pointer& pointer) {
    const int64_t parts = std::min(std::max<int64_t>(rows / kRows, 1), kMost);
    const int64_t total = pointer(rows) + kRowCost * rows;
    for (int64_t part = 0; part < parts; ++part) {
      int64_t low = 0;
      int64_t high = rows;
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (pointer(middle) + kRowCost * middle < total / parts * part) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      borders_.push_back(low);
    }
    borders_.push_back(rows);
  }

  int64_t count() const { return static_cast<int64_t>(borders_.size()) - 1; }

  // Calls kernel(args, partial, begin, end) for every range; `work` is the multiply-adds of all.
  template <typename Args, typename Run, typename T>
  void run(Run kernel, const Args& args, int64_t scratch, std::vector<double>* sums,
           std::vector<T>* dweight, int64_t work) const {
    const int64_t grain = std::max<int64_t>(1, count() * kGrain / std::max<int64_t>(work, 1));
    torch::stable::parallel_for(0, count(), grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<T[]> buffer(new T[scratch]);
      for (int64_t i = begin; i < end; ++i) {
        const ConvPartial partial = {buffer.get(), part(sums, i), part(dweight, i)};
        kernel(args, partial, borders_[i], borders_[i + 1]);
      }
    });
  }

 private:
  static constexpr int64_t kRows = 512;
  static constexpr int64_t kMost = 32;
  static constexpr int64_t kRowCost = 8;  // of a row's products, in edges

  template <typename U>
  U* part(std::vector<U>* parts, int64_t i) const {
    return parts == nullptr ? nullptr : parts->data() + i * (parts->size() / count());
  }

  std::vector<int64_t> borders_;
};

// Adds the parts in order: [parts, size] -> [size].
template <typename T, typename U>
Tensor reduced(const std::vector<U>& parts, int64_t size, double scale, ScalarType dtype,
               std::vector<int64_t> shape) {
  Tensor result = empty_output(shape, dtype);
  T* out = static_cast<T*>(result.data_ptr());
  std::vector<U> total(parts.begin(), parts.begin() + size);
  for (int64_t first = size; first < static_cast<int64_t>(parts.size()); first += size) {
    for (int64_t i = 0; i < size; ++i) {
      total[i] += parts[first + i];
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<T>(static_cast<U>(scale) * total[i]);
  }
  return result;
}

}  // namespace abkd
