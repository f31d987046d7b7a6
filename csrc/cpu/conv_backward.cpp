// Host side of the backward of conv on the CPU.
//
// Where s = (1 - alpha) A x + alpha x_0 was kept: dz from dout, dweight += s^T dz and ds = dz W^T
// in one pass over blocks, then dx = (1 - alpha) A^T ds. Where the transform came first, with
// g = A^T dz, block by block: dweight += x^T g and dx = g W^T.

#include <tuple>
#include <vector>

#include "conv.h"

namespace abkd {
namespace {

struct BackwardArgs {
  std::optional<CsrTensors> csr_t;
  OptionalTensor value_t, dsums, out, features, weight;
  Tensor dout;
  double alpha, beta;
  std::optional<DropoutMask> mask;
  bool want_x, want_weight, want_x_0;
};

template <typename T>
class Backward {
 public:
  explicit Backward(const BackwardArgs& in)
      : in_(in),
        dtype_(in.dout.scalar_type()),
        rows_(in.dout.size(0)),
        width_(in.weight.has_value() ? in.weight->size(0) : in.dout.size(1)),
        width_out_(in.dout.size(1)),
        weights_(width_ * width_out_) {}

  std::tuple<Tensor, Tensor, Tensor, Tensor> aggregated_first() {
    // With a residual, ds is written as dx_0 = alpha ds, which is an output anyway.
    const bool wanted = in_.want_x || in_.want_x_0;
    const double scale = in_.want_x_0 ? in_.alpha : 1 - in_.alpha;
    const std::vector<T> weight_t = folded<T>(*in_.weight, in_.beta, scale, true);
    Tensor ds = wanted ? matrix(rows_, width_, dtype_) : nothing(dtype_);
    ConvGrad grad = gradient();
    grad.features = in_.want_weight ? in_.features->data_ptr() : nullptr;
    grad.weight_t = weight_t.data();
    grad.ds = wanted ? ds.data_ptr() : nullptr;
    reserve(Ranges(rows_));
    run(grad, (int64_t{in_.want_weight} + wanted) * rows_ * weights_);

    Tensor dx = nothing(dtype_);
    if (in_.want_x) {
      dx = matrix(in_.csr_t->rows(), width_, dtype_);
      ConvPass pass = transposed(ds.data_ptr(), width_);
      pass.scale = in_.want_x_0 ? (1 - in_.alpha) / in_.alpha : 1;
      pass.width_out = width_;
      pass.out = dx.data_ptr();
      run(pass, 0);
    }
    return {dx, dweight(), dbias_, in_.want_x_0 ? ds : nothing(dtype_)};
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> transformed_first() {
    const bool masked = in_.out.has_value() || in_.dsums.has_value();
    const Tensor dz = masked ? matrix(rows_, width_out_, dtype_) : in_.dout;
    ConvGrad grad = gradient();
    grad.dz = masked ? dz.data_ptr() : nullptr;
    run(grad, rows_ * width_out_);

    std::vector<T> weight_t;
    if (in_.weight.has_value()) {
      weight_t = folded<T>(*in_.weight, in_.beta, 1, true);
    }
    Tensor dx = nothing(dtype_);
    if (in_.want_x || in_.want_weight) {
      const int64_t sources = in_.csr_t->rows();
      dx = in_.want_x ? matrix(sources, width_, dtype_) : dx;
      ConvPass pass = transposed(dz.data_ptr(), width_out_);
      reserve(Ranges(*in_.csr_t));
      pass.features = in_.want_weight ? in_.features->data_ptr() : nullptr;
      pass.features_width = width_;
      pass.weight = in_.weight.has_value() ? weight_t.data() : nullptr;
      pass.width_out = width_;
      pass.out = in_.want_x ? dx.data_ptr() : nullptr;
      run(pass, (int64_t{in_.want_weight} + in_.want_x) * sources * weights_);
    }
    return {dx, dweight(), dbias_, nothing(dtype_)};
  }

 private:
  ConvGrad gradient() const {
    ConvGrad grad = {};
    grad.dtype = feature_dtype("dout", in_.dout);
    grad.dout = in_.dout.data_ptr();
    grad.dsums = data_or_null(in_.dsums);
    grad.out = data_or_null(in_.out);
    grad.width = width_;
    grad.width_out = width_out_;
    return grad;
  }

  ConvPass transposed(const void* x, int64_t width) const {
    ConvPass pass = {};
    pass.csr = in_.csr_t->view();
    pass.schedule = sum_schedule(*in_.csr_t, rows_, width, dtype_);
    pass.dtype = feature_dtype("dout", in_.dout);
    pass.value = data_or_null(in_.value_t);
    pass.x = x;
    pass.width = width;
    pass.scale = 1;
    pass.mask = in_.mask.has_value() ? &*in_.mask : nullptr;
    return pass;
  }

  void run(const ConvGrad& grad, int64_t work) {
    const Ranges ranges(rows_);
    std::vector<double> sums(ranges.count() * width_out_);
    const int64_t scratch = conv_block_rows(width_out_ * sizeof(T)) * width_out_;
    ranges.run(dense_kernels().conv_grad, grad, scratch, &sums, &dweights_, work);
    dbias_ = reduced<T>(sums, width_out_, 1, dtype_, {width_out_});
  }

  void run(const ConvPass& pass, int64_t work) {
    const Ranges ranges(*in_.csr_t);
    std::vector<double>* const no_sums = nullptr;
    const int64_t widest = std::max(pass.width, pass.features_width);
    const int64_t scratch =
        conv_block_rows(widest * sizeof(T)) * (pass.width + pass.features_width);
    ranges.run(dense_kernels().conv, pass, scratch, no_sums, &dweights_,
               work + in_.csr_t->edges() * pass.width);
  }

  // Zeroed partial sums of dweight, for the pass that computes it.
  void reserve(const Ranges& ranges) {
    if (in_.want_weight) {
      dweights_.assign(ranges.count() * weights_, 0);
    }
  }

  Tensor dweight() const {
    if (!in_.want_weight) {
      return nothing(dtype_);
    }
    return reduced<T>(dweights_, weights_, in_.beta, dtype_, {width_, width_out_});
  }

  const BackwardArgs& in_;
  const ScalarType dtype_;
  const int64_t rows_, width_, width_out_, weights_;
  std::vector<T> dweights_;
  Tensor dbias_ = nothing(dtype_);
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Gradients conv_backward_cpu(OptionalTensor rowptr_t, OptionalTensor col_t, OptionalTensor value_t,
                            Tensor dout, OptionalTensor dsums, OptionalTensor out,
                            OptionalTensor features, OptionalTensor weight, double alpha,
                            double beta, double p, OptionalTensor seed, int64_t layer, int64_t step,
                            bool aggregate_first, bool want_x, bool want_weight, bool want_x_0) {
  const ScalarType dtype = dout.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "dout must be float32 or float64");
  check_matrix("dout", dout, dtype);
  STD_TORCH_CHECK(weight.has_value() || !(aggregate_first || want_weight), "weight must be given");
  const int64_t rows = dout.size(0);
  const int64_t width_out = dout.size(1);
  if (weight.has_value()) {
    check_weight(*weight, beta, dtype);
    check_size("weight", *weight, 1, width_out);
  }
  dout = torch::stable::contiguous(dout);
  std::optional<CsrTensors> csr_t;
  if (want_x || (want_weight && !aggregate_first)) {
    STD_TORCH_CHECK(rowptr_t.has_value() && col_t.has_value(), "the transpose must be given");
    csr_t.emplace(*rowptr_t, *col_t);
    value_t = checked_vector("value_t", value_t, csr_t->edges(), dtype);
  }
  if (out.has_value()) {
    out = checked("out", *out, rows, width_out, dtype);
  }
  if (want_weight) {
    STD_TORCH_CHECK(features.has_value(), "features must be given for dweight");
    const int64_t count = aggregate_first ? rows : csr_t->rows();
    features = checked("features", *features, count, weight->size(0), dtype);
  }
  STD_TORCH_CHECK(!want_x_0 || alpha != 0, "alpha must not be 0 where dx_0 is wanted");
  const BackwardArgs in = {csr_t,
                           value_t,
                           checked_vector("dsums", dsums, width_out, dtype),
                           out,
                           features,
                           weight,
                           dout,
                           alpha,
                           beta,
                           checked_mask(p, seed, layer, step),
                           want_x,
                           want_weight,
                           want_x_0};
  const auto gradients = [&](auto backward) {
    return aggregate_first ? backward.aggregated_first() : backward.transformed_first();
  };
  return dtype == ScalarType::Double ? gradients(Backward<double>(in))
                                     : gradients(Backward<float>(in));
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("conv_backward", TORCH_BOX(&abkd::conv_backward_cpu));
}
