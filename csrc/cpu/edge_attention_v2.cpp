// Host side of edge attention with mixed scores (GATv2) on the CPU.

#include "edge_attention_host.h"

namespace abkd {
namespace {

// The arguments that forward and backward share, checked.
struct MixedAttention {
  CsrTensors csr;
  ScalarType dtype;   // of the features
  ScalarType scores;  // the accumulation dtype
  Tensor x;
  Tensor x_dst;
  Tensor att;
  std::optional<DropoutMask> mask;
  double slope;

  MixedAttention(const Tensor& rowptr, const Tensor& col, const Tensor& source,
                 const Tensor& destination, const Tensor& vectors, double negative_slope)
      : csr(rowptr, col),
        dtype(source.scalar_type()),
        scores(accumulation_dtype(dtype)),
        x(source),
        x_dst(destination),
        att(vectors),
        slope(negative_slope) {
    feature_dtype("x", source);
    STD_TORCH_CHECK(x.dim() == 3, "x must have 3 dimensions, got ", x.dim());
    x = as_contiguous(x);
    x_dst = checked_rows("x_dst", destination, csr.rows(), heads(), width(), dtype);
    att = checked("att", vectors, heads(), width(), scores);
  }

  int64_t heads() const { return x.size(1); }
  int64_t width() const { return x.size(2); }

  AttentionPass pass(const CsrTensors& graph, int64_t gathered) const {
    AttentionPass result = {};
    result.dtype = feature_dtype("x", x);
    result.heads = heads();
    result.width = width();
    result.slope = slope;
    result.mask = mask.has_value() ? &*mask : nullptr;
    result.x = x.data_ptr();
    result.x_dst = x_dst.data_ptr();
    result.att_src = att.data_ptr();
    set_graph(&result, graph, gathered, dtype, true);
    return result;
  }
};

std::tuple<Tensor, Tensor> edge_attention_v2_cpu(Tensor rowptr, Tensor col, Tensor x, Tensor x_dst,
                                                 Tensor att, double negative_slope, double p,
                                                 OptionalTensor seed, int64_t layer, int64_t step) {
  MixedAttention in(rowptr, col, x, x_dst, att, negative_slope);
  in.mask = checked_mask(p, seed, layer, step);
  Tensor out = empty_output({in.csr.rows(), in.heads(), in.width()}, in.dtype);
  Tensor stats = empty_output({in.csr.rows(), 2, in.heads()}, in.scores);
  AttentionPass pass = in.pass(in.csr, in.x.size(0));
  pass.stats = stats.data_ptr();
  pass.out = out.data_ptr();
  run_pass(attention_v2_kernels().attend, pass, Ranges(in.csr), 0, in.scores);
  return {out, stats};
}

std::tuple<Tensor, Tensor, Tensor> edge_attention_v2_backward_cpu(
    Tensor rowptr, Tensor col, Tensor rowptr_t, Tensor col_t, Tensor perm, Tensor dout, Tensor x,
    Tensor x_dst, Tensor att, Tensor stats, double negative_slope, double p, OptionalTensor seed,
    int64_t layer, int64_t step) {
  MixedAttention in(rowptr, col, x, x_dst, att, negative_slope);
  in.mask = checked_mask(p, seed, layer, step);
  const CsrTensors csr_t(rowptr_t, col_t);
  csr_t.check_all_edges();
  const int64_t rows = in.csr.rows(), sources = in.x.size(0), heads = in.heads();
  STD_TORCH_CHECK(csr_t.rows() == sources && csr_t.edges() == in.csr.edges(),
                  "rowptr_t and col_t must be of the transpose");
  const Tensor order = checked_order(perm, csr_t.edges());
  dout = checked_rows("dout", dout, rows, heads, in.width(), in.dtype);
  stats = checked_rows("stats", stats, rows, 2, heads, in.scores);
  const Tensor coefficients = empty_output({in.csr.edges(), 2, heads}, in.scores);
  Tensor dx = empty_output({sources, heads, in.width()}, in.dtype);
  Tensor dx_dst = empty_output({rows, heads, in.width()}, in.dtype);

  const auto fill = [&](AttentionPass pass) {
    pass.dout = dout.data_ptr();
    pass.stats = stats.data_ptr();
    pass.coefficients = coefficients.data_ptr();
    pass.perm = static_cast<const int64_t*>(order.data_ptr());
    pass.dx = dx.data_ptr();
    pass.dx_dst = dx_dst.data_ptr();
    return pass;
  };
  const AttentionPass destinations = fill(in.pass(in.csr, sources));
  const Tensor datt =
      run_pass(attention_v2_kernels().attend_dst, destinations, Ranges(in.csr), 1, in.scores);
  const AttentionPass back = fill(in.pass(csr_t, rows));
  run_pass(attention_v2_kernels().attend_src, back, Ranges(csr_t), 0, in.scores);
  return {dx, dx_dst, part_of(datt, 0)};
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("edge_attention_v2", TORCH_BOX(&abkd::edge_attention_v2_cpu));
  m.impl("edge_attention_v2_backward", TORCH_BOX(&abkd::edge_attention_v2_backward_cpu));
}
