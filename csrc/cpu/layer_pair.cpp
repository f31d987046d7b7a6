// Host side of layer_pair's ops on the CPU: checks, outputs, threads.

#include <tuple>

#include "layer_pair_host.h"

namespace abkd {
namespace {

// Sums over the nodes, of which w (1 by default) is the weight and h~ = h - centre: cross = w t^T
// h~, second = w h~^T h~ and sum = w h~; dstates = w (h~ G + row - sum_i A_ij t_i M_i N_j^T).
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_pair_moment_cpu(
    Tensor teacher, std::vector<int64_t> widths, std::vector<Tensor> states,
    std::optional<Tensor> nodes, std::optional<Tensor> weight, Tensor centre, Tensor g, Tensor row,
    Tensor products, Tensor attention, bool want_student) {
  const Layers layers(widths);
  NodeTensors given(teacher, layers, states, nodes, weight, centre);
  const ScalarType dtype = given.dtype();
  const Layers& student = given.student();
  const int64_t width = student.total();
  const int64_t ld = padded(width);
  const Tensor a =
      check_shape("attention", attention, {layers.count(), student.count()}, ScalarType::Double);
  const Tensor maps =
      check_shape("products", products, {layers.total(), width}, ScalarType::Double);
  const Tensor g_padded = pad_columns("g", g, width, width, dtype);
  const Tensor row_padded = pad_columns("row", row, 1, width, dtype);
  Tensor k = empty_output({want_student ? layers.total() : 0, ld}, dtype);
  Tensor dstates = given.gradients(want_student);
  if (want_student) {
    const WeighArgs weigh = {layers.view(given.set().dtype, nullptr, 0),
                             student.view(given.set().dtype, nullptr, 0),
                             width,
                             doubles(a),
                             doubles(maps),
                             k.data_ptr()};
    parallel_each(layers.count(), 0,
                  [&](void*, int64_t layer) { layer_pair_kernels().weigh(weigh, layer); });
  }
  const int64_t size = (layers.total() + width + 1) * ld;
  GroupTotals totals(given.set(), size, given.teacher_bytes());
  const MomentArgs args = {
      given.set(),           g_padded.data_ptr(), want_student ? k.data_ptr() : nullptr,
      row_padded.data_ptr(), totals.data(),       size,
      dstates.data_ptr()};
  parallel_each(
      totals.groups(), layer_pair_kernels().moment_scratch(args),
      [&](void* scratch, int64_t group) { layer_pair_kernels().moment(args, scratch, group); });
  Tensor cross = empty_output({layers.total(), width}, ScalarType::Double);
  Tensor second = empty_output({width, width}, ScalarType::Double);
  Tensor sum = empty_output({width}, ScalarType::Double);
  for (const Tensor& out : {cross, second, sum}) {
    totals.collect(out, width, ld);
  }
  return {cross, second, sum, dstates};
}

// A [T, S] as the kernels of the projection form want it, in the compute dtype.
struct Attention {
  Tensor negated;
  Tensor rho;    // [T] row sums
  Tensor gamma;  // [S] column sums

  Attention(const Tensor& attention, int64_t num_teacher, int64_t num_student, ScalarType dtype)
      : negated(empty_output({num_teacher, num_student}, ScalarType::Double)),
        rho(empty_output({num_teacher}, ScalarType::Double)),
        gamma(empty_output({num_student}, ScalarType::Double)) {
    const Tensor whole =
        check_shape("attention", attention, {num_teacher, num_student}, ScalarType::Double);
    double* out = static_cast<double*>(negated.data_ptr());
    double* rows = static_cast<double*>(torch::stable::zero_(rho).data_ptr());
    double* columns = static_cast<double*>(torch::stable::zero_(gamma).data_ptr());
    for (int64_t i = 0; i < num_teacher; ++i) {
      for (int64_t j = 0; j < num_student; ++j) {
        const double a = doubles(whole)[i * num_student + j];
        out[i * num_student + j] = -a;
        rows[i] += a;
        columns[j] += a;
      }
    }
    negated = torch::stable::to(negated, dtype);
    rho = torch::stable::to(rho, dtype);
    gamma = torch::stable::to(gamma, dtype);
  }
};

// Sums over the nodes, with p = t M + bias and s = (h - centre) N, w their weight: squares [T + S]
// w |p|^2, w |s|^2; sums [T + S, r] w p, w s; cross [T, S] w <p, s>; dstudent_map h^T gs and
// dteacher_map t^T gp, with gs_j = w (gamma_j s_j - sum_i A_ij p_i + w_j) and gp_i likewise;
// dstates = scale gs N^T.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_pair_projection_cpu(
    Tensor teacher, std::vector<int64_t> widths, std::vector<Tensor> states,
    std::optional<Tensor> nodes, std::optional<Tensor> weight, Tensor centre, Tensor teacher_map,
    Tensor student_map, Tensor bias, Tensor attention, Tensor u, Tensor w, double scale,
    bool want_teacher_map, bool want_student) {
  const Layers layers(widths);
  NodeTensors given(teacher, layers, states, nodes, weight, centre);
  const ScalarType dtype = given.dtype();
  const Layers& student = given.student();
  const int64_t r = teacher_map.size(1);
  const int64_t ld = padded(r);
  const int64_t pairs = layers.count() + student.count();
  const Tensor m = pad_columns("teacher_map", teacher_map, layers.total(), r, dtype);
  const Tensor n = pad_columns("student_map", student_map, student.total(), r, dtype);
  const Tensor n_t = torch::stable::contiguous(torch::stable::transpose(n, 0, 1));
  const Tensor bias_padded = pad_columns("bias", bias, layers.count(), r, dtype);
  const Tensor u_padded = pad_columns("u", u, layers.count(), r, dtype);
  const Tensor w_padded = pad_columns("w", w, student.count(), r, dtype);
  const Attention a(attention, layers.count(), student.count(), dtype);
  Tensor squares = empty_output({pairs}, ScalarType::Double);
  Tensor sums = empty_output({pairs, r}, ScalarType::Double);
  Tensor cross = empty_output({layers.count(), student.count()}, ScalarType::Double);
  Tensor dstudent_map = empty_output({want_student ? student.total() : 0, r}, ScalarType::Double);
  Tensor dteacher_map =
      empty_output({want_teacher_map ? layers.total() : 0, r}, ScalarType::Double);
  Tensor dstates = given.gradients(want_student);
  const int64_t size =
      pairs * (1 + ld) + cross.numel() + (dstudent_map.size(0) + dteacher_map.size(0)) * ld;
  GroupTotals totals(given.set(), size, given.teacher_bytes());
  const ProjectionArgs args = {given.set(),          ld,
                               m.data_ptr(),         n.data_ptr(),
                               n_t.data_ptr(),       bias_padded.data_ptr(),
                               a.negated.data_ptr(), a.rho.data_ptr(),
                               a.gamma.data_ptr(),   u_padded.data_ptr(),
                               w_padded.data_ptr(),  scale,
                               want_teacher_map,     want_student,
                               totals.data(),        size,
                               dstates.data_ptr()};
  parallel_each(
      totals.groups(), layer_pair_kernels().projection_scratch(args),
      [&](void* scratch, int64_t group) { layer_pair_kernels().projection(args, scratch, group); });
  totals.collect(squares, 1, 1);
  totals.collect(sums, r, ld);
  totals.collect(cross, 1, 1);
  totals.collect(dstudent_map, r, ld);
  totals.collect(dteacher_map, r, ld);
  return {squares, sums, cross, dstudent_map, dteacher_map, dstates};
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("layer_pair_moment", TORCH_BOX(&abkd::layer_pair_moment_cpu));
  m.impl("layer_pair_projection", TORCH_BOX(&abkd::layer_pair_projection_cpu));
}
