// Host side of layer_pair's small products: maps and moments, without nodes.

#include <tuple>

#include "layer_pair_host.h"

namespace abkd {
namespace {

Tensor to_double(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Double));
}

// Per layer, rows times its map: [count, D] x [D, r] -> [count, L, r] float64.
Tensor layer_pair_rows_cpu(Tensor rows, Tensor maps, std::vector<int64_t> widths) {
  const Layers layers(widths);
  const Tensor left = check_shape("rows", rows, {rows.size(0), layers.total()}, ScalarType::Double);
  const Tensor right =
      check_shape("maps", maps, {layers.total(), maps.size(1)}, maps.scalar_type());
  const Dtype dtype = compute_dtype("maps", maps.scalar_type());
  Tensor out = empty_output({rows.size(0), layers.count(), maps.size(1)}, ScalarType::Double);
  const RowsArgs args = {layers.view(dtype, right.data_ptr(), maps.size(1)), doubles(left),
                         rows.size(0), static_cast<double*>(out.data_ptr())};
  parallel_each(
      layers.count(), layer_pair_kernels().rows_scratch(args),
      [&](void* scratch, int64_t layer) { layer_pair_kernels().rows(args, scratch, layer); });
  return out;
}

// M N^T: [D, r] x [C, r] -> [D, C] float64.
Tensor layer_pair_products_cpu(Tensor teacher_map, Tensor student_map,
                               std::vector<int64_t> widths) {
  const Layers layers(widths);
  const int64_t r = teacher_map.size(1);
  const int64_t width = student_map.size(0);
  const Tensor m =
      check_shape("teacher_map", teacher_map, {layers.total(), r}, teacher_map.scalar_type());
  const Tensor n = check_shape("student_map", student_map, {width, r}, student_map.scalar_type());
  const Tensor n_t = torch::stable::contiguous(torch::stable::transpose(to_double(n), 0, 1));
  const Dtype dtype = compute_dtype("teacher_map", m.scalar_type());
  Tensor products = empty_output({layers.total(), width}, ScalarType::Double);
  const ProductArgs args = {layers.view(dtype, m.data_ptr(), r), doubles(n_t), width,
                            static_cast<double*>(products.data_ptr())};
  parallel_each(
      layers.count(), layer_pair_kernels().products_scratch(args),
      [&](void* scratch, int64_t layer) { layer_pair_kernels().products(args, scratch, layer); });
  return products;
}

// A square float64 matrix per layer, contiguous and alive.
struct Matrices {
  std::vector<Tensor> kept;
  std::vector<const double*> pointers;

  Matrices(const std::vector<Tensor>& second, const Layers& layers) {
    STD_TORCH_CHECK(static_cast<int64_t>(second.size()) == layers.count(),
                    "second must hold a matrix per layer");
    for (int64_t i = 0; i < layers.count(); ++i) {
      const int64_t d = layers.widths[i];
      kept.push_back(check_shape("second", second[i], {d, d}, ScalarType::Double));
      pointers.push_back(doubles(kept.back()));
    }
  }
};

// With C_ij = cross_ij / count - mean_i^T rest_j and C_ii = second_i - mean_i^T mean_i: square [T]
// <M_i, C_ii M_i>, inner [T, S] <M_i N_j^T, C_ij>, dteacher_map [D, r] rho_i C_ii M_i - sum_j A_ij
// C_ij N_j + offset_i^T u_i in the dtype of the maps, and cross_map [C, r] sum_i A_ij C_ij^T M_i.
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_pair_moment_maps_cpu(
    Tensor teacher_map, Tensor student_map, std::vector<int64_t> widths,
    std::vector<int64_t> student_widths, std::vector<Tensor> second, Tensor mean, Tensor rest,
    Tensor products, Tensor cross, double count, Tensor attention, Tensor offset, Tensor u,
    bool want_teacher_map, bool want_student) {
  const Layers layers(widths);
  const Layers student(student_widths);
  const int64_t r = teacher_map.size(1);
  const int64_t width = student.total();
  constexpr ScalarType kDouble = ScalarType::Double;
  const ScalarType dtype = teacher_map.scalar_type();
  const Dtype type = compute_dtype("teacher_map", dtype);
  const Tensor m = check_shape("teacher_map", teacher_map, {layers.total(), r}, dtype);
  const Tensor n = to_double(check_shape("student_map", student_map, {width, r}, dtype));
  const Tensor given[] = {
      check_shape("mean", mean, {layers.total()}, kDouble),
      check_shape("rest", rest, {width}, kDouble),
      check_shape("products", products, {layers.total(), width}, kDouble),
      check_shape("cross", cross, {layers.total(), width}, kDouble),
      check_shape("attention", attention, {layers.count(), student.count()}, kDouble),
      check_shape("offset", offset, {layers.total()}, kDouble),
      check_shape("u", u, {layers.count(), r}, kDouble)};
  const Matrices matrices(second, layers);
  std::vector<double> rho(layers.count());
  for (int64_t i = 0; i < attention.numel(); ++i) {
    rho[i / student.count()] += doubles(given[4])[i];
  }
  Tensor square = empty_output({layers.count()}, kDouble);
  Tensor inner = empty_output({layers.count(), student.count()}, kDouble);
  Tensor dteacher_map = empty_output({want_teacher_map ? layers.total() : 0, r}, dtype);
  Tensor parts = empty_output({want_student ? layers.count() : 0, width, r}, kDouble);
  Tensor cross_map = empty_output({want_student ? width : 0, r}, kDouble);
  const MomentMapsArgs args = {layers.view(type, m.data_ptr(), r),
                               student.view(Dtype::kFloat64, n.data_ptr(), r),
                               width,
                               matrices.pointers.data(),
                               doubles(given[0]),
                               doubles(given[1]),
                               doubles(given[2]),
                               doubles(given[3]),
                               count,
                               doubles(given[4]),
                               rho.data(),
                               doubles(given[5]),
                               doubles(given[6]),
                               static_cast<double*>(square.data_ptr()),
                               static_cast<double*>(inner.data_ptr()),
                               want_teacher_map ? dteacher_map.data_ptr() : nullptr,
                               want_student ? static_cast<double*>(parts.data_ptr()) : nullptr};
  parallel_each(layers.count(), layer_pair_kernels().moment_maps_scratch(args),
                [&](void* scratch, int64_t layer) {
                  layer_pair_kernels().moment_maps(args, scratch, layer);
                });
  if (want_student) {
    sum_groups(args.cross_map, layers.count(), width * r, width, r, r,
               static_cast<double*>(cross_map.data_ptr()));
  }
  return {square, inner, dteacher_map, cross_map};
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("layer_pair_rows", TORCH_BOX(&abkd::layer_pair_rows_cpu));
  m.impl("layer_pair_products", TORCH_BOX(&abkd::layer_pair_products_cpu));
  m.impl("layer_pair_moment_maps", TORCH_BOX(&abkd::layer_pair_moment_maps_cpu));
}
