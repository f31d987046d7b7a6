// Segment reductions on the CPU: spmm without the gather, and the gradients of both kinds.

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

#include "memory.h"
#include "sum_rows.h"

namespace abkd {
namespace {

SpmmArgs segment_args(const CsrTensors& csr, const Tensor& src, const Tensor& out) {
  SpmmArgs args = {};
  args.csr = csr.view();
  args.dtype = feature_dtype("src", src);
  args.x = src.data_ptr();
  args.out = out.data_ptr();
  args.width = src.size(1);
  args.schedule.edges = csr.edges();
  args.schedule.pairs = csr.edges() >= 4 * csr.rows();
  return args;
}

Tensor segment_csr_cpu(Tensor src, Tensor indptr, bool mean) {
  check_matrix("src", src, src.scalar_type());
  const CsrTensors csr(indptr, src.size(0));
  const Tensor rows = as_contiguous(src);
  Tensor out = empty_output({csr.rows(), src.size(1)}, src.scalar_type());
  SpmmArgs args = segment_args(csr, rows, out);
  args.mean = mean;
  sum_rows(args, csr, src.scalar_type());
  return out;
}

std::tuple<Tensor, Tensor> segment_csr_extremum_cpu(Tensor src, Tensor indptr, bool maximum,
                                                    bool winners) {
  check_matrix("src", src, src.scalar_type());
  const CsrTensors csr(indptr, src.size(0));
  const Tensor rows = as_contiguous(src);
  const int64_t width = src.size(1);
  check_degrees(csr);
  Tensor out = empty_output({csr.rows(), width}, src.scalar_type());
  Tensor arg = empty_output({winners ? csr.rows() : 0, width}, ScalarType::Long);
  SpmmArgs args = segment_args(csr, rows, out);
  args.arg = winners ? arg.data_ptr() : nullptr;
  args.maximum = maximum;
  parallel_rows(csr, width,
                [&](int64_t begin, int64_t end) { extremum_kernels().extremum(args, begin, end); });
  return {out, arg};
}

// Calls run(segment, rows [first, stop)) for all segments, and zero(first, stop) for the rows
// before the first and behind the last.
template <typename Run, typename Zero>
void visit_segments(const CsrTensors& csr, int64_t width, const Run& run, const Zero& zero) {
  zero(0, csr.pointer(0));
  parallel_rows(csr, width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      run(i, csr.pointer(i), csr.pointer(i + 1));
    }
  });
  zero(csr.pointer(csr.rows()), csr.edges());
}

// Every row of a segment is the segment's row of `out`; rows of no segment are 0.
Tensor segment_csr_expand_cpu(Tensor out, Tensor indptr, int64_t size) {
  const CsrTensors csr(indptr, size);
  check_matrix("out", out, out.scalar_type());
  check_size("out", out, 0, csr.rows());
  const Tensor source = as_contiguous(out);
  Tensor result = empty_output({size, out.size(1)}, out.scalar_type());
  const int64_t bytes = out.size(1) * static_cast<int64_t>(out.element_size());
  const char* from = static_cast<const char*>(source.data_ptr());
  char* to = static_cast<char*>(result.data_ptr());
  if (bytes > 0) {
    visit_segments(
        csr, out.size(1),
        [&](int64_t i, int64_t first, int64_t stop) {
          for (int64_t e = first; e < stop; ++e) {
            std::memcpy(to + e * bytes, from + i * bytes, bytes);
          }
        },
        [&](int64_t first, int64_t stop) {
          std::fill(to + first * bytes, to + stop * bytes, char(0));
        });
  }
  return result;
}

template <typename Bits>
void scatter_winners(const CsrTensors& csr, const int64_t* arg, const void* dout, void* dsrc,
                     int64_t width) {
  const Bits* from = static_cast<const Bits*>(dout);
  Bits* to = static_cast<Bits*>(dsrc);
  const auto zero = [&](int64_t first, int64_t stop) {
    std::fill(to + first * width, to + stop * width, Bits(0));
  };
  const auto run = [&](int64_t i, int64_t first, int64_t stop) {
    zero(first, stop);
    for (int64_t f = i * width; f < (i + 1) * width; ++f) {
      if (first <= arg[f] && arg[f] < stop) {
        to[arg[f] * width + f - i * width] = from[f];
      }
    }
  };
  visit_segments(csr, width, run, zero);
}

Tensor segment_csr_extremum_dsrc_cpu(Tensor arg, Tensor dout, Tensor indptr, int64_t size) {
  const CsrTensors csr(indptr, size);
  check_matrix("arg", arg, ScalarType::Long);
  feature_dtype("dout", dout);
  check_matrix("dout", dout, dout.scalar_type());
  const int64_t width = dout.size(1);
  for (const Tensor& tensor : {arg, dout}) {
    check_size("arg and dout", tensor, 0, csr.rows());
    check_size("arg and dout", tensor, 1, width);
  }
  const Tensor winners = as_contiguous(arg);
  const Tensor gradient = as_contiguous(dout);
  Tensor dsrc = empty_output({size, width}, dout.scalar_type());
  const auto scatter = dout.element_size() == 8   ? scatter_winners<uint64_t>
                       : dout.element_size() == 4 ? scatter_winners<uint32_t>
                                                  : scatter_winners<uint16_t>;
  scatter(csr, static_cast<const int64_t*>(winners.data_ptr()), gradient.data_ptr(),
          dsrc.data_ptr(), width);
  return dsrc;
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("segment_csr", TORCH_BOX(&abkd::segment_csr_cpu));
  m.impl("segment_csr_extremum", TORCH_BOX(&abkd::segment_csr_extremum_cpu));
  m.impl("segment_csr_expand", TORCH_BOX(&abkd::segment_csr_expand_cpu));
  m.impl("segment_csr_extremum_dsrc", TORCH_BOX(&abkd::segment_csr_extremum_dsrc_cpu));
}
