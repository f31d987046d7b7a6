// Host side of the backward of relational on the CPU.
//
// By sources (kTransformFirst): g = A_r^T dz, block by block; dW_r += x^T g, dx += g W_r^T.
// By destinations: dW_r += (A_r x)^T dz with the sums formed again; ds = dz W_r^T of the relation's
// destinations, dx += A_r^T ds. Products take place once a source or once a destination.

#include <tuple>

#include "relational.h"

namespace abkd {
namespace {

struct BackwardArgs {
  PairStack stack, stack_t;
  std::vector<RootType> types;
  Tensor dz, x, weight;
  OptionalTensor value_t, x_root, root;
  bool mean;
  std::vector<int64_t> orders;
  bool want_x, want_x_root, want_weight, want_root, want_bias;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
class Backward {
 public:
  explicit Backward(const BackwardArgs& in)
      : in_(in), dtype_(in.dz.scalar_type()), width_(in.x.size(1)), width_out_(in.dz.size(1)) {}

  Gradients run() {
    const int64_t relations = in_.stack.relations();
    outputs();
    for (const RootType& type : in_.types) {
      root_gradients(type);
    }
    int64_t most = 0;
    for (int64_t r = 0; r < relations && in_.want_x; ++r) {
      most = std::max(most, in_.orders[r] == kAggregateFirst ? in_.stack.count(r) : 0);
    }
    const Tensor ds = matrix(most, width_, dtype_);
    for (int64_t r = 0; r < relations; ++r) {
      if (in_.stack.count(r) == 0 || in_.orders[r] == kLeftOut ||
          !(in_.want_x || in_.want_weight)) {
        continue;
      }
      if (in_.orders[r] == kTransformFirst) {
        by_sources(r);
      } else {
        by_destinations(r, ds);
      }
    }
    return {dx_, dx_root_, dweight_, droot_, dbias_};
  }

 private:
  void outputs() {
    const int64_t relations = in_.stack.relations();
    int64_t covered = 0;
    for (const RootType& type : in_.types) {
      covered += type.count;
    }
    const bool written = in_.root.has_value() && !in_.x_root.has_value();
    if (in_.want_x) {
      dx_ = matrix(in_.x.size(0), width_, dtype_);
      if (!written || covered < in_.x.size(0)) {
        torch::stable::fill_(dx_, 0.0);
      }
    }
    if (in_.want_x_root) {
      dx_root_ = matrix(in_.x_root->size(0), in_.x_root->size(1), dtype_);
      if (covered < in_.x_root->size(0)) {
        torch::stable::fill_(dx_root_, 0.0);
      }
    }
    if (in_.want_weight) {
      dweight_ = zeros({relations, width_, width_out_});
    }
    const int64_t types = in_.root.has_value() ? in_.root->size(0) : in_.types.back().type + 1;
    if (in_.want_root) {
      droot_ = zeros({types, in_.root->size(1), width_out_});
    }
    if (in_.want_bias) {
      dbias_ = zeros({types, width_out_});
    }
  }

  Tensor zeros(const std::vector<int64_t>& sizes) const {
    Tensor result = empty_output(sizes, dtype_);
    return torch::stable::fill_(result, 0.0);
  }

  void root_gradients(const RootType& type) {
    const int64_t done = done_;
    done_ += type.count;
    const bool own = in_.x_root.has_value();
    const bool want_input = in_.root.has_value() && (own ? in_.want_x_root : in_.want_x);
    if (type.count == 0 || !(want_input || in_.want_root || in_.want_bias)) {
      return;
    }
    const Tensor& x = own ? *in_.x_root : in_.x;
    const int64_t width = x.size(1);
    RelationalPass pass = base();
    pass.x = static_cast<const T*>(in_.dz.data_ptr()) + done * width_out_;
    pass.width = width_out_;
    std::vector<T> root_t;
    if (want_input) {
      const T* root = static_cast<const T*>(in_.root->data_ptr());
      root_t = transposed_matrix(root + type.type * width * width_out_, width, width_out_);
      pass.weight = root_t.data();
      pass.width_out = width;
      pass.out = static_cast<T*>((own ? dx_root_ : dx_).data_ptr()) + type.first * width;
    }
    if (in_.want_root) {
      pass.features = static_cast<const T*>(x.data_ptr()) + type.first * width;
      pass.features_width = width;
    }
    const Ranges ranges(type.count);
    std::vector<double> sums(in_.want_bias ? ranges.count() * width_out_ : 0);
    std::vector<T> partial(in_.want_root ? ranges.count() * width * width_out_ : 0);
    run_pass<T>(pass, ranges, 2 * type.count * width * width_out_, in_.want_bias ? &sums : nullptr,
                in_.want_root ? &partial : nullptr);
    if (in_.want_bias) {
      reduce(sums, width_out_, static_cast<T*>(dbias_.data_ptr()) + type.type * width_out_);
    }
    if (in_.want_root) {
      const int64_t size = width * width_out_;
      reduce(partial, size, static_cast<T*>(droot_.data_ptr()) + type.type * size);
    }
  }

  void by_sources(int64_t r) {
    RelationalPass pass = aggregation(in_.stack_t, r, false, in_.dz, width_out_);
    pass.value = data_or_null(in_.value_t);
    const int64_t sources = in_.stack_t.count(r);
    const std::vector<T> weight_t = transposed(r);
    if (in_.want_x) {
      pass.weight = weight_t.data();
      pass.width_out = width_;
      pass.out = dx_.data_ptr();
      pass.out_rows = in_.stack_t.rows(r);
    }
    if (in_.want_weight) {
      pass.features = in_.x.data_ptr();
      pass.features_rows = in_.stack_t.rows(r);
      pass.features_width = width_;
    }
    const Ranges ranges = in_.stack_t.ranges(r);
    std::vector<T> partial(in_.want_weight ? ranges.count() * size() : 0);
    run_pass<T>(pass, ranges, in_.stack_t.edges(r) * width_out_ + 2 * sources * size(), nullptr,
                in_.want_weight ? &partial : nullptr);
    if (in_.want_weight) {
      reduce(partial, size(), dweight(r));
    }
  }

  void by_destinations(int64_t r, const Tensor& ds) {
    const int64_t rows = in_.stack.count(r), edges = in_.stack.edges(r);
    if (in_.want_weight) {
      RelationalPass pass = aggregation(in_.stack, r, false, in_.x, width_);
      pass.mean = in_.mean;
      pass.features = in_.dz.data_ptr();
      pass.features_rows = in_.stack.rows(r);
      pass.features_width = width_out_;
      const Ranges ranges = in_.stack.ranges(r);
      std::vector<T> partial(ranges.count() * size());
      std::vector<double>* const no_sums = nullptr;
      run_pass<T>(pass, ranges, edges * width_ + rows * size(), no_sums, &partial);
      std::vector<T> total(size());
      reduce(partial, size(), total.data());
      const std::vector<T> turned = transposed_matrix(total.data(), width_out_, width_);
      std::copy(turned.begin(), turned.end(), dweight(r));
    }
    if (in_.want_x) {
      const std::vector<T> weight_t = transposed(r);
      RelationalPass product = base();
      product.gather = in_.stack.rows(r);
      product.x = in_.dz.data_ptr();
      product.width = width_out_;
      product.weight = weight_t.data();
      product.width_out = width_;
      product.out = ds.data_ptr();
      run_pass<T>(product, Ranges(rows), rows * size());
      RelationalPass sums = aggregation(in_.stack_t, r, true, ds, width_);
      sums.value = data_or_null(in_.value_t);
      sums.width_out = width_;
      sums.out = dx_.data_ptr();
      sums.out_rows = in_.stack_t.rows(r);
      run_pass<T>(sums, in_.stack_t.ranges(r), edges * width_);
    }
  }

  RelationalPass base() const {
    RelationalPass pass = {};
    pass.dtype = feature_dtype("dout", in_.dz);
    pass.csr.wide = in_.stack.wide();
    return pass;
  }

  RelationalPass aggregation(const PairStack& stack, int64_t r, bool local, const Tensor& x,
                             int64_t width) const {
    RelationalPass pass = base();
    pass.csr = stack.csr(r, local);
    pass.schedule = stack.schedule(r, local ? in_.stack.count(r) : x.size(0), width, dtype_);
    pass.x = x.data_ptr();
    pass.width = width;
    return pass;
  }

  template <typename U>
  static void reduce(const std::vector<U>& parts, int64_t size, T* out) {
    std::vector<U> total(parts.begin(), parts.begin() + size);
    for (int64_t first = size; first < static_cast<int64_t>(parts.size()); first += size) {
      for (int64_t i = 0; i < size; ++i) {
        total[i] += parts[first + i];
      }
    }
    for (int64_t i = 0; i < size; ++i) {
      out[i] = static_cast<T>(total[i]);
    }
  }

  int64_t size() const { return width_ * width_out_; }
  T* dweight(int64_t r) { return static_cast<T*>(dweight_.data_ptr()) + r * size(); }
  std::vector<T> transposed(int64_t r) const {
    const T* weight = static_cast<const T*>(in_.weight.data_ptr()) + r * size();
    return in_.want_x ? transposed_matrix(weight, width_, width_out_) : std::vector<T>();
  }

  const BackwardArgs& in_;
  const ScalarType dtype_;
  const int64_t width_, width_out_;
  int64_t done_ = 0;
  Tensor dx_ = nothing(dtype_), dx_root_ = nothing(dtype_), dweight_ = nothing(dtype_);
  Tensor droot_ = nothing(dtype_), dbias_ = nothing(dtype_);
};

// dout where out is positive or NaN.
template <typename T>
Tensor masked(const Tensor& dout, const Tensor& out) {
  Tensor result = matrix(dout.size(0), dout.size(1), dout.scalar_type());
  const T* from = static_cast<const T*>(dout.data_ptr());
  const T* mask = static_cast<const T*>(out.data_ptr());
  T* to = static_cast<T*>(result.data_ptr());
  const int64_t size = dout.numel();
  parallel_ranges(size, parts_for(size, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      to[i] = mask[i] <= 0 ? 0 : from[i];
    }
  });
  return result;
}

Gradients relational_backward_cpu(std::vector<Tensor> stack, std::vector<Tensor> stack_t,
                                  OptionalTensor value_t, std::vector<int64_t> pairs,
                                  std::vector<int64_t> pairs_t, std::vector<int64_t> roots,
                                  Tensor dout, OptionalTensor out, Tensor x, OptionalTensor x_root,
                                  Tensor weight, OptionalTensor root, bool mean,
                                  std::vector<int64_t> orders, bool want_x, bool want_x_root,
                                  bool want_weight, bool want_root, bool want_bias) {
  const ScalarType dtype = dout.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "dout must be float32 or float64");
  const bool is_double = dtype == ScalarType::Double;
  dout = checked("dout", dout, root_rows(roots), weight.size(2), dtype);
  if (out.has_value()) {
    const Tensor result = checked("out", *out, dout.size(0), dout.size(1), dtype);
    dout = is_double ? masked<double>(dout, result) : masked<float>(dout, result);
  }
  const auto contiguous = [](const OptionalTensor& tensor) {
    return tensor.has_value() ? OptionalTensor(as_contiguous(*tensor)) : tensor;
  };
  const BackwardArgs in = {{stack, pairs},
                           {stack_t, pairs_t},
                           root_types(roots),
                           dout,
                           as_contiguous(x),
                           as_contiguous(weight),
                           contiguous(value_t),
                           contiguous(x_root),
                           contiguous(root),
                           mean,
                           orders,
                           want_x,
                           want_x_root,
                           want_weight,
                           want_root,
                           want_bias};
  check_matrix("x", x, dtype);
  check_relations(in.stack, in.stack_t, weight, x.size(1), orders, dtype);
  check_roots(in.types, x, x_root, root, std::nullopt, weight.size(2), dtype);
  STD_TORCH_CHECK(!value_t.has_value() ||
                      (value_t->scalar_type() == dtype && value_t->numel() == in.stack_t.edges()),
                  "value_t must be [E] of the dtype of x");
  return is_double ? Backward<double>(in).run() : Backward<float>(in).run();
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("relational_backward", TORCH_BOX(&abkd::relational_backward_cpu));
}
