// Shared by the host code of layer_pair's ops: layers, nodes, threads, sums over groups.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "../check.h"
#include "layer_pair.h"
#include "memory.h"

namespace abkd {

inline const double* doubles(const Tensor& tensor) {
  return static_cast<const double*>(tensor.data_ptr());
}

inline Dtype compute_dtype(const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
                  " must be float32 or float64");
  return dtype == ScalarType::Float ? Dtype::kFloat32 : Dtype::kFloat64;
}

// Contiguous, of the stated shape and dtype.
inline Tensor check_shape(const char* name, const Tensor& tensor, std::vector<int64_t> sizes,
                          ScalarType dtype) {
  STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(sizes.size()), name, " must have ",
                  sizes.size(), " dimensions, got ", tensor.dim());
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    check_size(name, tensor, dim, sizes[dim]);
  }
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  return torch::stable::contiguous(tensor);
}

// [rows, width], contiguous, with zero columns up to a multiple of kPad.
inline Tensor pad_columns(const char* name, const Tensor& tensor, int64_t rows, int64_t width,
                          ScalarType dtype) {
  const Tensor whole = check_shape(name, tensor, {rows, width}, dtype);
  if (width % kPad == 0) {
    return whole;
  }
  const std::vector<int64_t> sides = {0, padded(width) - width};
  return torch::stable::contiguous(torch::stable::pad(whole, sides));
}

// Widths of layers that lie side by side, and where each starts.
struct Layers {
  std::vector<int64_t> widths;
  std::vector<int64_t> starts;

  explicit Layers(std::vector<int64_t> sizes) : widths(std::move(sizes)), starts(1, 0) {
    for (int64_t width : widths) {
      STD_TORCH_CHECK(width >= 1, "a layer has no width");
      starts.push_back(starts.back() + width);
    }
    STD_TORCH_CHECK(!widths.empty(), "there must be at least one layer");
  }

  int64_t count() const { return widths.size(); }
  int64_t total() const { return starts.back(); }
  MapsView view(Dtype dtype, const void* data, int64_t r) const {
    return {dtype, data, r, widths.data(), starts.data(), count()};
  }
};

// Calls run(scratch, index) for every index; each thread has its own scratch.
template <typename Run>
void parallel_each(int64_t count, int64_t scratch_bytes, const Run& run) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const int64_t bytes = (scratch_bytes + 63) / 64 * 64;
    const std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, bytes), std::free);
    STD_TORCH_CHECK(bytes == 0 || scratch != nullptr, "no memory for ", bytes, " bytes of scratch");
    for (int64_t index = begin; index < end; ++index) {
      run(scratch.get(), index);
    }
  });
}

// Groups of nodes, a power of two: at least kGroupRows nodes each, and totals that take no more
// memory than kTotalBytes or a 16th of the teacher.
inline int64_t count_groups(int64_t rows, int64_t bytes, int64_t teacher_bytes) {
  constexpr int64_t kGroupRows = 1024;
  constexpr int64_t kTotalBytes = 1 << 24;
  constexpr int64_t kMostGroups = 64;
  const int64_t memory = std::max(kTotalBytes, teacher_bytes / 16) / bytes;
  const int64_t most = std::min({rows / kGroupRows, memory, kMostGroups});
  int64_t groups = 1;
  while (groups * 2 <= most) {
    groups *= 2;
  }
  return groups;
}

// out [rows, width]: sums over groups of [rows, ld], in order; groups are `stride` apart.
inline void sum_groups(const double* parts, int64_t groups, int64_t stride, int64_t rows,
                       int64_t width, int64_t ld, double* out) {
  STD_TORCH_CHECK(width > 0, "maps must have at least one column");
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / width);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < width; ++i) {
        out[row * width + i] = parts[row * ld + i];
      }
      for (int64_t group = 1; group < groups; ++group) {
        for (int64_t i = 0; i < width; ++i) {
          out[row * width + i] += parts[group * stride + row * ld + i];
        }
      }
    }
  });
}

// Teacher, states and nodes of a call, checked; keeps alive what `set` points to.
class NodeTensors {
 public:
  NodeTensors(const Tensor& teacher, const Layers& layers, const std::vector<Tensor>& states,
              const std::optional<Tensor>& nodes, const std::optional<Tensor>& weight,
              const Tensor& centre);

  const NodeSet& set() const { return set_; }
  NodeSet& set() { return set_; }
  ScalarType dtype() const { return dtype_; }
  int64_t num_nodes() const { return num_nodes_; }
  const Layers& student() const { return student_; }
  // Gradients of the states: zero for nodes that do not count.
  Tensor gradients(bool wanted) const;
  int64_t teacher_bytes() const;

 private:
  ScalarType dtype_;
  int64_t num_nodes_;
  Layers student_;
  std::vector<LayerStates> states_;
  std::optional<Tensor> nodes_;
  std::optional<Tensor> weight_;
  Tensor centre_;
  NodeSet set_;
};

// The groups' float64 totals, and their sums one after the other.
class GroupTotals {
 public:
  // Decides how many groups there are.
  GroupTotals(NodeSet& set, int64_t size, int64_t teacher_bytes)
      : groups_(
            count_groups(set.num_rows, size * static_cast<int64_t>(sizeof(double)), teacher_bytes)),
        size_(size),
        totals_(empty_output({groups_, size}, ScalarType::Double)) {
    set.groups = groups_;
    if (set.num_rows == 0) {  // no pass writes them
      std::fill_n(data(), groups_ * size_, 0.0);
    }
  }

  int64_t groups() const { return groups_; }
  double* data() const { return static_cast<double*>(totals_.data_ptr()); }

  // The next [rows, ld] of every group, to out [rows, width].
  void collect(const Tensor& out, int64_t width, int64_t ld) {
    STD_TORCH_CHECK(width > 0, "maps must have at least one column");
    const int64_t rows = out.numel() / width;
    sum_groups(data() + next_, groups_, size_, rows, width, ld,
               static_cast<double*>(out.data_ptr()));
    next_ += rows * ld;
  }

 private:
  int64_t groups_;
  int64_t size_;
  int64_t next_ = 0;
  Tensor totals_;
};

}  // namespace abkd
