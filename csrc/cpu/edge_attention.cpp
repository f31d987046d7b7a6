// Host side of edge attention (GAT) on the CPU: checks, outputs, ranges of rows.

#include "edge_attention_host.h"

namespace abkd {
namespace {

// The arguments that forward and backward share, checked.
struct Attention {
  CsrTensors csr;
  ScalarType dtype;   // of the features
  ScalarType scores;  // the accumulation dtype
  Tensor x;
  OptionalTensor x_dst;
  Tensor att_src;
  OptionalTensor att_dst;
  OptionalTensor score_edge;
  std::optional<DropoutMask> mask;
  double slope;

  Attention(const Tensor& rowptr, const Tensor& col, const Tensor& features,
            const OptionalTensor& other, const Tensor& source, const OptionalTensor& destination,
            const OptionalTensor& edge, double negative_slope)
      : csr(rowptr, col),
        dtype(features.scalar_type()),
        scores(accumulation_dtype(dtype)),
        x(features),
        att_src(source),
        slope(negative_slope) {
    feature_dtype("x", features);
    STD_TORCH_CHECK(x.dim() == 3, "x must have 3 dimensions, got ", x.dim());
    x = as_contiguous(x);
    att_src = checked("att_src", source, heads(), width(), scores);
    if (destination.has_value()) {
      att_dst = checked("att_dst", *destination, heads(), width(), scores);
      STD_TORCH_CHECK(other.has_value() || csr.rows() == x.size(0), "x_dst must be given");
    }
    if (other.has_value()) {
      x_dst = checked_rows("x_dst", *other, csr.rows(), heads(), width(), dtype);
    }
    if (edge.has_value()) {
      score_edge = checked("score_edge", *edge, csr.edges(), heads(), scores);
    }
  }

  int64_t heads() const { return x.size(1); }
  int64_t width() const { return x.size(2); }
  bool shared() const { return att_dst.has_value() && !x_dst.has_value(); }

  AttentionPass pass(const CsrTensors& graph, int64_t gathered) const {
    AttentionPass result = {};
    result.dtype = feature_dtype("x", x);
    result.heads = heads();
    result.width = width();
    result.slope = slope;
    result.mask = mask.has_value() ? &*mask : nullptr;
    result.x = x.data_ptr();
    result.x_dst = data_or_null(x_dst);
    result.att_src = att_src.data_ptr();
    result.att_dst = data_or_null(att_dst);
    result.score_edge = data_or_null(score_edge);
    result.shared = shared();
    set_graph(&result, graph, gathered, dtype, false);
    return result;
  }

  // <rows, att> of every node and head; zeros without att.
  Tensor score(const Tensor& rows, const OptionalTensor& att, int64_t count) const {
    Tensor result = matrix(count, heads(), scores);
    if (!att.has_value()) {
      return torch::stable::fill_(result, 0.0);
    }
    AttentionPass nodes = {};
    nodes.dtype = feature_dtype("x", rows);
    nodes.heads = heads();
    nodes.width = width();
    nodes.x = rows.data_ptr();
    nodes.att_src = att->data_ptr();
    nodes.out = result.data_ptr();
    const ConvPartial none = {};
    parallel_ranges(count, parts_for(count, heads() * width()), [&](int64_t begin, int64_t end) {
      attention_kernels().score(nodes, none, begin, end);
    });
    return result;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> edge_attention_cpu(
    Tensor rowptr, Tensor col, Tensor x, OptionalTensor x_dst, Tensor att_src,
    OptionalTensor att_dst, OptionalTensor score_edge, double negative_slope, double p,
    OptionalTensor seed, int64_t layer, int64_t step) {
  Attention in(rowptr, col, x, x_dst, att_src, att_dst, score_edge, negative_slope);
  in.mask = checked_mask(p, seed, layer, step);
  const int64_t rows = in.csr.rows();
  const Tensor score_src = in.score(in.x, in.att_src, in.x.size(0));
  const Tensor score_dst = in.score(in.x_dst.has_value() ? *in.x_dst : in.x, in.att_dst, rows);
  Tensor out = empty_output({rows, in.heads(), in.width()}, in.dtype);
  Tensor stats = empty_output({rows, 2, in.heads()}, in.scores);
  AttentionPass pass = in.pass(in.csr, in.x.size(0));
  pass.score_src = score_src.data_ptr();
  pass.score_dst = score_dst.data_ptr();
  pass.stats = stats.data_ptr();
  pass.out = out.data_ptr();
  run_pass(attention_kernels().attend, pass, Ranges(in.csr), 0, in.scores);
  return {out, stats, score_src, score_dst};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients edge_attention_backward_cpu(Tensor rowptr, Tensor col, Tensor rowptr_t, Tensor col_t,
                                      Tensor perm, Tensor dout, Tensor x, OptionalTensor x_dst,
                                      Tensor att_src, OptionalTensor att_dst,
                                      OptionalTensor score_edge, Tensor stats, Tensor score_src,
                                      Tensor score_dst, double negative_slope, double p,
                                      OptionalTensor seed, int64_t layer, int64_t step,
                                      bool want_edge) {
  Attention in(rowptr, col, x, x_dst, att_src, att_dst, score_edge, negative_slope);
  in.mask = checked_mask(p, seed, layer, step);
  const CsrTensors csr_t(rowptr_t, col_t);
  csr_t.check_all_edges();
  const int64_t rows = in.csr.rows(), sources = in.x.size(0), heads = in.heads();
  STD_TORCH_CHECK(csr_t.rows() == sources && csr_t.edges() == in.csr.edges(),
                  "rowptr_t and col_t must be of the transpose");
  const Tensor order = checked_order(perm, csr_t.edges());
  dout = checked_rows("dout", dout, rows, heads, in.width(), in.dtype);
  stats = checked_rows("stats", stats, rows, 2, heads, in.scores);
  score_src = checked("score_src", score_src, sources, heads, in.scores);
  score_dst = checked("score_dst", score_dst, rows, heads, in.scores);
  const Tensor records = empty_output({rows, 4, heads}, in.scores);
  const Tensor dscore_dst = matrix(rows, heads, in.scores);
  const bool other = in.x_dst.has_value() && in.att_dst.has_value();
  Tensor dx = empty_output({sources, heads, in.width()}, in.dtype);
  Tensor dx_dst = other ? empty_output({rows, heads, in.width()}, in.dtype) : nothing(in.dtype);
  Tensor dedge = want_edge ? matrix(in.csr.edges(), heads, in.scores) : nothing(in.scores);

  const auto fill = [&](AttentionPass pass) {
    pass.dout = dout.data_ptr();
    pass.stats = stats.data_ptr();
    pass.score_src = score_src.data_ptr();
    pass.score_dst = score_dst.data_ptr();
    pass.records = records.data_ptr();
    pass.dscore_dst = dscore_dst.data_ptr();
    pass.dscore_edge = want_edge ? dedge.data_ptr() : nullptr;
    pass.perm = static_cast<const int64_t*>(order.data_ptr());
    pass.dx = dx.data_ptr();
    pass.dx_dst = other ? dx_dst.data_ptr() : nullptr;
    return pass;
  };
  const AttentionPass destinations = fill(in.pass(in.csr, sources));
  const Tensor first =
      run_pass(attention_kernels().attend_dst, destinations, Ranges(in.csr), 2, in.scores);
  const AttentionPass back = fill(in.pass(csr_t, rows));
  const Tensor second = run_pass(attention_kernels().attend_src, back, Ranges(csr_t), 2, in.scores);
  const Tensor datt_dst =
      in.att_dst.has_value() ? part_of(other ? first : second, 1) : nothing(in.scores);
  return {dx, dx_dst, part_of(second, 0), datt_dst, dedge};
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("edge_attention", TORCH_BOX(&abkd::edge_attention_cpu));
  m.impl("edge_attention_backward", TORCH_BOX(&abkd::edge_attention_backward_cpu));
}
