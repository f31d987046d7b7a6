// Host side of relational on the CPU: relation by relation, in the order that costs less.
//
// Aggregated first, a block of pairs goes through the relation's weight while it is in cache.
// Transformed first, the relation's sources do, each once, and their products are aggregated.

#include "relational.h"

#include <cstring>

namespace abkd {
namespace {

struct ForwardArgs {
  PairStack stack, stack_t;
  std::vector<RootType> types;
  Tensor x, weight;
  OptionalTensor x_root, root, bias;
  bool mean;
  std::vector<int64_t> orders;
};

template <typename T>
class Forward {
 public:
  Forward(const ForwardArgs& in, int64_t rows)
      : in_(in),
        dtype_(in.x.scalar_type()),
        width_(in.x.size(1)),
        width_out_(in.weight.size(2)),
        out_(matrix(rows, width_out_, dtype_)) {}

  Tensor run() {
    initial();
    int64_t most = 0;
    for (int64_t r = 0; r < in_.stack.relations(); ++r) {
      most = std::max(most, in_.orders[r] == kTransformFirst ? in_.stack_t.count(r) : 0);
    }
    const Tensor transformed = matrix(most, width_out_, dtype_);
    for (int64_t r = 0; r < in_.stack.relations(); ++r) {
      if (in_.stack.count(r) == 0 || in_.orders[r] == kLeftOut) {
        continue;
      }
      if (in_.orders[r] == kTransformFirst) {
        transform(r, transformed);
      } else {
        RelationalPass pass = aggregation(r, false, in_.x, width_);
        pass.weight = weight(r);
        run_pass<T>(pass, in_.stack.ranges(r),
                    (in_.stack.edges(r) + in_.stack.count(r) * width_out_) * width_);
      }
    }
    return out_;
  }

 private:
  // out = x root + bias of every type.
  void initial() {
    T* out = static_cast<T*>(out_.data_ptr());
    for (const RootType& type : in_.types) {
      const T* bias = static_cast<const T*>(data_or_null(in_.bias));
      bias = bias == nullptr ? nullptr : bias + type.type * width_out_;
      if (in_.root.has_value()) {
        const Tensor& x = in_.x_root.has_value() ? *in_.x_root : in_.x;
        RelationalPass pass = base();
        pass.width = x.size(1);
        pass.x = static_cast<const T*>(x.data_ptr()) + type.first * pass.width;
        pass.weight =
            static_cast<const T*>(in_.root->data_ptr()) + type.type * pass.width * width_out_;
        pass.bias = bias;
        pass.out = out;
        run_pass<T>(pass, Ranges(type.count), type.count * pass.width * width_out_);
      } else {
        for (int64_t i = 0; i < type.count; ++i) {
          for (int64_t j = 0; j < width_out_; ++j) {
            out[i * width_out_ + j] = bias == nullptr ? 0 : bias[j];
          }
        }
      }
      out += type.count * width_out_;
    }
  }

  void transform(int64_t r, const Tensor& transformed) {
    const int64_t sources = in_.stack_t.count(r);
    RelationalPass pass = base();
    pass.gather = in_.stack_t.rows(r);
    pass.x = in_.x.data_ptr();
    pass.width = width_;
    pass.weight = weight(r);
    pass.out = transformed.data_ptr();
    run_pass<T>(pass, Ranges(sources), sources * width_ * width_out_);
    const RelationalPass sums = aggregation(r, true, transformed, width_out_);
    run_pass<T>(sums, in_.stack.ranges(r), in_.stack.edges(r) * width_out_);
  }

  RelationalPass base() const {
    RelationalPass pass = {};
    pass.dtype = feature_dtype("x", in_.x);
    pass.csr.wide = in_.stack.wide();
    pass.width_out = width_out_;
    return pass;
  }

  RelationalPass aggregation(int64_t r, bool local, const Tensor& x, int64_t width) const {
    RelationalPass pass = base();
    pass.csr = in_.stack.csr(r, local);
    const int64_t sources = local ? in_.stack_t.count(r) : x.size(0);
    pass.schedule = in_.stack.schedule(r, sources, width, dtype_);
    pass.mean = in_.mean;
    pass.x = x.data_ptr();
    pass.width = width;
    pass.out = out_.data_ptr();
    pass.out_rows = in_.stack.rows(r);
    return pass;
  }

  const T* weight(int64_t r) const {
    return static_cast<const T*>(in_.weight.data_ptr()) + r * width_ * width_out_;
  }

  const ForwardArgs& in_;
  const ScalarType dtype_;
  const int64_t width_, width_out_;
  Tensor out_;
};

template <typename T>
void relu(const Tensor& out) {
  T* data = static_cast<T*>(out.data_ptr());
  const int64_t size = out.numel();
  parallel_ranges(size, parts_for(size, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      data[i] = data[i] < 0 ? 0 : data[i];  // keeps NaN
    }
  });
}

Tensor relational_cpu(std::vector<Tensor> stack, std::vector<Tensor> stack_t,
                      std::vector<int64_t> pairs, std::vector<int64_t> pairs_t,
                      std::vector<int64_t> roots, Tensor x, OptionalTensor x_root, Tensor weight,
                      OptionalTensor root, OptionalTensor bias, bool mean, bool relu_after,
                      std::vector<int64_t> orders) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "x must be float32 or float64");
  check_matrix("x", x, dtype);
  const auto contiguous = [](const OptionalTensor& tensor) {
    return tensor.has_value() ? OptionalTensor(as_contiguous(*tensor)) : tensor;
  };
  const ForwardArgs in = {{stack, pairs},
                          {stack_t, pairs_t},
                          root_types(roots),
                          as_contiguous(x),
                          as_contiguous(weight),
                          contiguous(x_root),
                          contiguous(root),
                          contiguous(bias),
                          mean,
                          orders};
  check_relations(in.stack, in.stack_t, weight, x.size(1), orders, dtype);
  check_roots(in.types, x, x_root, root, bias, weight.size(2), dtype);
  const int64_t rows = root_rows(roots);
  if (dtype == ScalarType::Double) {
    const Tensor out = Forward<double>(in, rows).run();
    if (relu_after) relu<double>(out);
    return out;
  }
  const Tensor out = Forward<float>(in, rows).run();
  if (relu_after) relu<float>(out);
  return out;
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("relational", TORCH_BOX(&abkd::relational_cpu));
}
