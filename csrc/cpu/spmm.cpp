// Host side of spmm, sddmm and the extremum ops on the CPU: checks, outputs, threads.

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "../check.h"
#include "memory.h"
#include "sum_rows.h"

namespace abkd {
namespace {

// The weights as a contiguous [E] tensor in the accumulation dtype.
std::optional<Tensor> check_value(const std::optional<Tensor>& value, const CsrTensors& csr,
                                  ScalarType dtype) {
  if (!value.has_value()) {
    return std::nullopt;
  }
  STD_TORCH_CHECK(value->dim() == 1 && value->numel() == csr.edges(), "value must be [E]");
  STD_TORCH_CHECK(value->scalar_type() == accumulation_dtype(dtype),
                  "value must be float32, or float64 where x is");
  return as_contiguous(*value);
}

const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->data_ptr() : nullptr;
}

Tensor check_features(const char* name, const Tensor& tensor, int64_t rows, ScalarType dtype) {
  check_matrix(name, tensor, dtype);
  check_size(name, tensor, 0, rows);
  return as_contiguous(tensor);
}

Tensor spmm_cpu(Tensor rowptr, Tensor col, std::optional<Tensor> value, Tensor x, bool mean) {
  const CsrTensors csr(rowptr, col);
  const ScalarType dtype = x.scalar_type();
  const Dtype type = feature_dtype("x", x);
  const Tensor features = check_features("x", x, x.size(0), dtype);
  const std::optional<Tensor> weights = check_value(value, csr, dtype);
  const int64_t width = x.size(1);
  Tensor out = empty_output({csr.rows(), width}, dtype);
  SumSchedule schedule = sum_schedule(csr, x.size(0), width, dtype);
  schedule.slices = in_slices(x.size(0), width, dtype);
  const SpmmArgs args = {csr.view(),
                         type,
                         data_or_null(weights),
                         features.data_ptr(),
                         out.data_ptr(),
                         nullptr,
                         width,
                         mean,
                         false,
                         schedule};
  sum_rows(args, csr, dtype);
  return out;
}

std::tuple<Tensor, Tensor> spmm_extremum_cpu(Tensor rowptr, Tensor col, std::optional<Tensor> value,
                                             Tensor x, bool maximum, bool winners) {
  const CsrTensors csr(rowptr, col);
  const ScalarType dtype = x.scalar_type();
  const Dtype type = feature_dtype("x", x);
  const Tensor features = check_features("x", x, x.size(0), dtype);
  const std::optional<Tensor> weights = check_value(value, csr, dtype);
  const int64_t width = x.size(1);
  check_degrees(csr);
  Tensor out = empty_output({csr.rows(), width}, dtype);
  Tensor arg = empty_output({winners ? csr.rows() : 0, width}, rowptr.scalar_type());
  const SpmmArgs args = {csr.view(),
                         type,
                         data_or_null(weights),
                         features.data_ptr(),
                         out.data_ptr(),
                         winners ? arg.data_ptr() : nullptr,
                         width,
                         false,
                         maximum,
                         csr.edges(),
                         prefetch_distance(x.size(0), width, dtype)};
  parallel_rows(csr, width,
                [&](int64_t begin, int64_t end) { extremum_kernels().extremum(args, begin, end); });
  return {out, arg};
}

Tensor sddmm_cpu(Tensor rowptr, Tensor col, Tensor a, Tensor b) {
  const CsrTensors csr(rowptr, col);
  const ScalarType dtype = a.scalar_type();
  const Dtype type = feature_dtype("a", a);
  const Tensor left = check_features("a", a, csr.rows(), dtype);
  const Tensor right = check_features("b", b, b.size(0), dtype);
  check_size("b", b, 1, a.size(1));
  csr.check_all_edges();
  Tensor out = empty_output({csr.edges()}, accumulation_dtype(dtype));
  if (a.size(1) == 0) {
    return torch::stable::fill_(out, 0.0);
  }
  const SddmmArgs args = {
      csr.view(),     type,      left.data_ptr(), right.data_ptr(),
      out.data_ptr(), a.size(1), csr.rows(),      prefetch_distance(b.size(0), b.size(1), dtype)};
  parallel_ranges(csr.edges(), parts_for(csr.edges(), a.size(1)),
                  [&](int64_t first, int64_t stop) { spmm_kernels().sddmm(args, first, stop); });
  return out;
}

Tensor spmm_extremum_dx_cpu(Tensor rowptr_t, Tensor col_t, Tensor perm, std::optional<Tensor> value,
                            Tensor arg, Tensor dout) {
  const CsrTensors csr(rowptr_t, col_t);
  const ScalarType dtype = dout.scalar_type();
  const Dtype type = feature_dtype("dout", dout);
  STD_TORCH_CHECK(perm.scalar_type() == ScalarType::Long && perm.numel() == csr.edges(),
                  "perm must be int64 [E]");
  const Tensor order = as_contiguous(perm);
  const Tensor winners = check_features("arg", arg, dout.size(0), rowptr_t.scalar_type());
  const Tensor gradient = check_features("dout", dout, dout.size(0), dtype);
  check_size("arg", arg, 1, dout.size(1));
  const std::optional<Tensor> weights = check_value(value, csr, dtype);
  const int64_t width = dout.size(1);
  Tensor out = empty_output({csr.rows(), width}, dtype);
  const ExtremumDxArgs args = {csr.view(),
                               type,
                               static_cast<const int64_t*>(order.data_ptr()),
                               data_or_null(weights),
                               winners.data_ptr(),
                               gradient.data_ptr(),
                               out.data_ptr(),
                               width};
  parallel_rows(csr, width,
                [&](int64_t begin, int64_t end) { extremum_kernels().dx(args, begin, end); });
  return out;
}

Tensor spmm_extremum_dvalue_cpu(Tensor rowptr, Tensor col, Tensor x, Tensor arg, Tensor dout) {
  const CsrTensors csr(rowptr, col);
  const ScalarType dtype = x.scalar_type();
  const Dtype type = feature_dtype("x", x);
  const Tensor features = check_features("x", x, x.size(0), dtype);
  const Tensor winners = check_features("arg", arg, csr.rows(), rowptr.scalar_type());
  const Tensor gradient = check_features("dout", dout, csr.rows(), dtype);
  const int64_t width = x.size(1);
  check_size("arg", arg, 1, width);
  check_size("dout", dout, 1, width);
  csr.check_all_edges();
  Tensor out = empty_output({csr.edges()}, accumulation_dtype(dtype));
  const ExtremumDvalueArgs args = {
      csr.view(),     type, features.data_ptr(), winners.data_ptr(), gradient.data_ptr(),
      out.data_ptr(), width};
  parallel_rows(csr, width,
                [&](int64_t begin, int64_t end) { extremum_kernels().dvalue(args, begin, end); });
  return out;
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("spmm", TORCH_BOX(&abkd::spmm_cpu));
  m.impl("sddmm", TORCH_BOX(&abkd::sddmm_cpu));
  m.impl("spmm_extremum", TORCH_BOX(&abkd::spmm_extremum_cpu));
  m.impl("spmm_extremum_dx", TORCH_BOX(&abkd::spmm_extremum_dx_cpu));
  m.impl("spmm_extremum_dvalue", TORCH_BOX(&abkd::spmm_extremum_dvalue_cpu));
}
