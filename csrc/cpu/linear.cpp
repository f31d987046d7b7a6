// A dense linear layer whose weight stays in cache, forward and backward: the dense half of conv.

#include <tuple>

#include "conv.h"

namespace abkd {
namespace {

struct LinearShape {
  int64_t rows, width, width_out;
  ScalarType dtype;

  LinearShape(const Tensor& x, const Tensor& weight)
      : rows(x.size(0)), width(x.size(1)), width_out(weight.size(0)), dtype(x.scalar_type()) {
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "x must be float32 or float64");
    check_matrix("x", x, dtype);
    check_matrix("weight", weight, dtype);
    check_size("weight", weight, 1, width);
    STD_TORCH_CHECK(weight.numel() > 0, "weight must not be empty");
  }

  int64_t products() const { return rows * width * width_out; }
};

template <typename T>
Tensor forward(const LinearShape& shape, const Tensor& x, const Tensor& weight,
               const OptionalTensor& bias, bool relu) {
  const std::vector<T> weight_t = folded<T>(weight, 1, 1, true);
  Tensor out = matrix(shape.rows, shape.width_out, shape.dtype);
  ConvPass pass = {};
  pass.dtype = feature_dtype("x", x);
  pass.x = x.data_ptr();
  pass.width = shape.width;
  pass.weight = weight_t.data();
  pass.width_out = shape.width_out;
  pass.bias = data_or_null(bias);
  pass.relu = relu;
  pass.out = out.data_ptr();
  const Ranges ranges(shape.rows);
  std::vector<double> sums(ranges.count() * shape.width_out);
  std::vector<T>* const no_dweight = nullptr;
  ranges.run(dense_kernels().transform, pass, 0, &sums, no_dweight, shape.products());
  return out;
}

Tensor linear_cpu(Tensor x, Tensor weight, OptionalTensor bias, bool relu) {
  const LinearShape shape(x, weight);
  const Tensor input = as_contiguous(x);
  bias = checked_vector("bias", bias, shape.width_out, shape.dtype);
  const auto run = shape.dtype == ScalarType::Double ? forward<double> : forward<float>;
  return run(shape, input, weight, bias, relu);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
Gradients backward(const LinearShape& shape, const Tensor& dout, const OptionalTensor& out,
                   const Tensor& x, const Tensor& weight, bool want_x, bool want_weight) {
  const std::vector<T> rows_of_weight = folded<T>(weight, 1, 1, false);
  Tensor dx = want_x ? matrix(shape.rows, shape.width, shape.dtype) : nothing(shape.dtype);
  ConvGrad grad = {};
  grad.dtype = feature_dtype("x", x);
  grad.dout = dout.data_ptr();
  grad.out = data_or_null(out);
  grad.features = want_weight ? x.data_ptr() : nullptr;
  grad.weight_t = rows_of_weight.data();
  grad.ds = want_x ? dx.data_ptr() : nullptr;
  grad.width = shape.width;
  grad.width_out = shape.width_out;
  const Ranges ranges(shape.rows);
  const int64_t weights = shape.width * shape.width_out;
  std::vector<double> sums(ranges.count() * shape.width_out);
  std::vector<T> dweights(want_weight ? ranges.count() * weights : 0);
  const int64_t scratch = conv_block_rows(shape.width_out * sizeof(T)) * shape.width_out;
  ranges.run(dense_kernels().conv_grad, grad, scratch, &sums, &dweights,
             shape.products() * (int64_t{want_x} + want_weight));
  Tensor dweight_t = nothing(shape.dtype);
  if (want_weight) {
    dweight_t = reduced<T>(dweights, weights, 1, shape.dtype, {shape.width, shape.width_out});
  }
  Tensor dbias = reduced<T>(sums, shape.width_out, 1, shape.dtype, {shape.width_out});
  return {dx, dweight_t, dbias};
}

Gradients linear_backward_cpu(Tensor dout, OptionalTensor out, Tensor x, Tensor weight, bool want_x,
                              bool want_weight) {
  const LinearShape shape(x, weight);
  const Tensor gradient = checked("dout", dout, shape.rows, shape.width_out, shape.dtype);
  if (out.has_value()) {
    out = checked("out", *out, shape.rows, shape.width_out, shape.dtype);
  }
  const Tensor input = as_contiguous(x);
  const auto run = shape.dtype == ScalarType::Double ? backward<double> : backward<float>;
  return run(shape, gradient, out, input, weight, want_x, want_weight);
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("linear", TORCH_BOX(&abkd::linear_cpu));
  m.impl("linear_backward", TORCH_BOX(&abkd::linear_backward_cpu));
}
