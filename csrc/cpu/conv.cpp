// Host side of conv on the CPU: checks, outputs, the passes of the forward.

#include "conv.h"

#include <tuple>
#include <vector>

namespace abkd {
namespace {

struct ForwardArgs {
  CsrTensors csr;
  OptionalTensor value, weight, bias, x_0;
  Tensor x;
  double alpha, beta;
  bool relu, keep_mixed;
  std::optional<DropoutMask> mask;
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const ForwardArgs& in, bool aggregate_first) {
  const ScalarType dtype = in.x.scalar_type();
  const Dtype type = feature_dtype("x", in.x);
  const int64_t rows = in.csr.rows(), sources = in.x.size(0), width = in.x.size(1);
  const int64_t width_out = in.weight.has_value() ? in.weight->size(1) : width;
  std::vector<T> weight;
  if (in.weight.has_value()) {
    weight = folded<T>(*in.weight, in.beta, 1, false);
  }
  const DropoutMask* mask = in.mask.has_value() ? &*in.mask : nullptr;
  std::vector<T>* const no_dweight = nullptr;

  // The aggregated features, if they are not x.
  Tensor features = nothing(dtype);
  if (!aggregate_first) {
    features = matrix(sources, width_out, dtype);
    ConvPass pass = {};
    pass.dtype = type;
    pass.x = in.x.data_ptr();
    pass.width = width;
    pass.weight = weight.data();
    pass.width_out = width_out;
    pass.out = features.data_ptr();
    pass.mask = mask;
    const int64_t scratch = conv_block_rows(width * sizeof(T)) * width;
    Ranges(sources).run(dense_kernels().transform, pass, scratch, nullptr, no_dweight,
                        sources * width * width_out);
  } else if (mask != nullptr) {
    features = matrix(sources, width, dtype);
    parallel_dropout({type, in.x.data_ptr(), features.data_ptr(), *mask}, sources * width);
  }

  Tensor out = matrix(rows, width_out, dtype);
  Tensor mixed = aggregate_first && in.keep_mixed ? matrix(rows, width, dtype) : nothing(dtype);
  ConvPass pass = {};
  pass.csr = in.csr.view();
  pass.schedule = sum_schedule(in.csr, sources, aggregate_first ? width : width_out, dtype);
  pass.dtype = type;
  pass.value = data_or_null(in.value);
  pass.x = aggregate_first && mask == nullptr ? in.x.data_ptr() : features.data_ptr();
  pass.width = aggregate_first ? width : width_out;
  pass.scale = in.x_0.has_value() ? 1 - in.alpha : 1;
  pass.residual = data_or_null(in.x_0);
  pass.residual_scale = in.alpha;
  pass.mixed = aggregate_first && in.keep_mixed ? mixed.data_ptr() : nullptr;
  pass.weight = aggregate_first && in.weight.has_value() ? weight.data() : nullptr;
  pass.width_out = width_out;
  pass.bias = data_or_null(in.bias);
  pass.relu = in.relu;
  pass.out = out.data_ptr();
  const Ranges ranges(in.csr);
  std::vector<double> sums(ranges.count() * width_out);
  const int64_t product = aggregate_first ? rows * width * width_out : 0;
  ranges.run(dense_kernels().conv, pass, conv_block_rows(pass.width * sizeof(T)) * pass.width,
             &sums, no_dweight, in.csr.edges() * pass.width + product);
  return {out, reduced<T>(sums, width_out, 1, dtype, {width_out}), mixed};
}

std::tuple<Tensor, Tensor, Tensor> conv_cpu(Tensor rowptr, Tensor col, OptionalTensor value,
                                            Tensor x, OptionalTensor weight, OptionalTensor bias,
                                            OptionalTensor x_0, double alpha, double beta,
                                            bool relu, bool aggregate_first, bool keep_mixed,
                                            double p, OptionalTensor seed, int64_t layer,
                                            int64_t step) {
  const CsrTensors csr(rowptr, col);
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "x must be float32 or float64");
  STD_TORCH_CHECK(aggregate_first || !x_0.has_value(), "x_0 needs aggregate_first");
  STD_TORCH_CHECK(weight.has_value() || (aggregate_first && !keep_mixed),
                  "without a weight there is nothing to do first or to keep");
  int64_t width_out = x.size(1);
  if (weight.has_value()) {
    check_weight(*weight, beta, dtype);
    check_size("weight", *weight, 0, width_out);
    width_out = weight->size(1);
  }
  if (x_0.has_value()) {
    x_0 = checked("x_0", *x_0, csr.rows(), x.size(1), dtype);
  }
  const ForwardArgs in = {csr,
                          checked_vector("value", value, csr.edges(), dtype),
                          weight,
                          checked_vector("bias", bias, width_out, dtype),
                          x_0,
                          checked("x", x, x.size(0), x.size(1), dtype),
                          alpha,
                          beta,
                          relu,
                          keep_mixed,
                          checked_mask(p, seed, layer, step)};
  return dtype == ScalarType::Double ? forward<double>(in, aggregate_first)
                                     : forward<float>(in, aggregate_first);
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) { m.impl("conv", TORCH_BOX(&abkd::conv_cpu)); }
