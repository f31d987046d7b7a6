// Host side of neighbor_kl on the CPU: checks, outputs, ranges of rows.

#include "neighbor_kl.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "conv.h"

namespace abkd {
namespace {

// The arguments that all operators share, checked.
struct Neighbors {
  CsrTensors csr;
  Tensor student;
  NeighborPass pass = {};

  Neighbors(const Tensor& rowptr, const Tensor& col, const Tensor& rows, int64_t similarity,
            double offset, int64_t power)
      : csr(rowptr, col), student(as_contiguous(rows)) {
    STD_TORCH_CHECK(dtype() == ScalarType::Float || dtype() == ScalarType::Double,
                    "student must be float32 or float64");
    check_matrix("student", student, dtype());
    check_size("student", student, 0, csr.rows());
    STD_TORCH_CHECK(0 <= similarity && similarity <= static_cast<int64_t>(Similarity::kPower),
                    "similarity must be 0, 1 or 2, got ", similarity);
    STD_TORCH_CHECK(power >= 1, "power must be >= 1, got ", power);
    pass.dtype = feature_dtype("student", student);
    pass.similarity = static_cast<Similarity>(similarity);
    pass.offset = offset;
    pass.power = power;
    pass.student = view(student);
  }

  ScalarType dtype() const { return student.scalar_type(); }

  NeighborRows view(const Tensor& rows) const {
    const int64_t width = rows.size(1);
    return {rows.data_ptr(), width, prefetch_distance(rows.size(0), width, rows.scalar_type())};
  }
};

// Runs a kernel over all rows of a graph; the sum of what its ranges leave.
double run(NeighborKernels::Kernel kernel, NeighborPass pass, const CsrTensors& csr) {
  pass.csr = csr.view();
  pass.edges = csr.edges();
  for (int64_t i = 0; i < csr.rows(); ++i) {
    pass.capacity = std::max(pass.capacity, csr.pointer(i + 1) - csr.pointer(i));
  }
  const Ranges ranges(csr);
  std::vector<double> sums(ranges.count());
  std::vector<char>* const no_dweight = nullptr;
  const int64_t work = (pass.edges + 1) * (pass.student.width + pass.teacher.width + 1);
  ranges.run(kernel, pass, neighbor_space(pass), &sums, no_dweight, work);
  double total = 0;
  for (const double sum : sums) {
    total += sum;
  }
  return total;
}

Tensor scalar(double value, ScalarType dtype) {
  Tensor result = empty_output({}, dtype);
  if (dtype == ScalarType::Double) {
    *static_cast<double*>(result.data_ptr()) = value;
  } else {
    *static_cast<float*>(result.data_ptr()) = static_cast<float>(value);
  }
  return result;
}

std::tuple<Tensor, Tensor> neighbor_kl_cpu(Tensor rowptr, Tensor col, OptionalTensor rowptr_t,
                                           OptionalTensor col_t, OptionalTensor perm,
                                           Tensor student, OptionalTensor teacher,
                                           OptionalTensor log_target, int64_t similarity,
                                           double offset, int64_t power) {
  Neighbors in(rowptr, col, student, similarity, offset, power);
  NeighborPass& pass = in.pass;
  const int64_t nodes = in.csr.rows();
  STD_TORCH_CHECK(teacher.has_value() != log_target.has_value(),
                  "teacher or log_target must be given, and not both");
  if (teacher.has_value()) {
    teacher = as_contiguous(*teacher);
    check_matrix("teacher", *teacher, in.dtype());
    check_size("teacher", *teacher, 0, nodes);
    pass.teacher = in.view(*teacher);
  } else {
    log_target = checked_vector("log_target", log_target, in.csr.edges(), in.dtype());
    pass.log_target = log_target->data_ptr();
  }
  const bool wanted = rowptr_t.has_value();
  const Tensor stats = matrix(nodes, 4, in.dtype());
  Tensor dstudent = wanted ? matrix(nodes, student.size(1), in.dtype()) : nothing(in.dtype());
  pass.stats = stats.data_ptr();
  pass.dstudent = wanted ? dstudent.data_ptr() : nullptr;
  pass.scale = 1 / static_cast<double>(nodes);
  const double total = run(neighbor_kernels().rows, pass, in.csr);
  if (wanted) {
    STD_TORCH_CHECK(col_t.has_value() && perm.has_value(), "col_t and perm must be given");
    const CsrTensors csr_t(*rowptr_t, *col_t);
    csr_t.check_all_edges();
    STD_TORCH_CHECK(csr_t.rows() == nodes && csr_t.edges() == in.csr.edges(),
                    "rowptr_t and col_t must be those of the transpose");
    STD_TORCH_CHECK(perm->scalar_type() == ScalarType::Long && perm->numel() == csr_t.edges(),
                    "perm must be int64 [E]");
    const Tensor order = as_contiguous(*perm);
    pass.perm = static_cast<const int64_t*>(order.data_ptr());
    run(neighbor_kernels().columns, pass, csr_t);
  }
  return {scalar(total / static_cast<double>(nodes), in.dtype()), dstudent};
}

Tensor neighbor_log_softmax_cpu(Tensor rowptr, Tensor col, Tensor x, int64_t similarity,
                                double offset, int64_t power) {
  Neighbors in(rowptr, col, x, similarity, offset, power);
  in.csr.check_all_edges();
  Tensor out = empty_output({in.csr.edges()}, in.dtype());
  in.pass.out = out.data_ptr();
  run(neighbor_kernels().log_softmax, in.pass, in.csr);
  return out;
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("neighbor_kl", TORCH_BOX(&abkd::neighbor_kl_cpu));
  m.impl("neighbor_log_softmax", TORCH_BOX(&abkd::neighbor_log_softmax_cpu));
}
