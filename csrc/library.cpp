// Operator schemas, and the empty Python module whose import registers them.
//
// Kernels register themselves in csrc/cpu. Shape rules and autograd live in Python, beside the
// public functions. abkd_fast/_backend.py holds the same schemas for installs without this file.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"
#include "cpu/memory.h"

STABLE_TORCH_LIBRARY(abkd_fast, m) {
  m.def("spmm(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool mean) -> Tensor");
  m.def("sddmm(Tensor rowptr, Tensor col, Tensor a, Tensor b) -> Tensor");
  m.def(
      "spmm_extremum(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool maximum,"
      " bool winners) -> (Tensor out, Tensor arg)");
  m.def(
      "spmm_extremum_dx(Tensor rowptr_t, Tensor col_t, Tensor perm, Tensor? value, Tensor arg,"
      " Tensor dout) -> Tensor");
  m.def(
      "spmm_extremum_dvalue(Tensor rowptr, Tensor col, Tensor x, Tensor arg, Tensor dout) -> "
      "Tensor");
  m.def("dropout(Tensor x, float p, Tensor seed, int layer, int step) -> Tensor");
  m.def(
      "layer_pair_moment(Tensor teacher, SymInt[] widths, Tensor[] states, Tensor? nodes, Tensor? "
      "weight,"
      " Tensor centre, Tensor g, Tensor row, Tensor products, Tensor attention, bool want_student)"
      " -> (Tensor cross, Tensor second, Tensor sum, Tensor dstates)");
  m.def(
      "layer_pair_projection(Tensor teacher, SymInt[] widths, Tensor[] states, Tensor? nodes, "
      "Tensor? weight,"
      " Tensor centre, Tensor teacher_map, Tensor student_map, Tensor bias, Tensor attention,"
      " Tensor u, Tensor w, float scale, bool want_teacher_map, bool want_student)"
      " -> (Tensor squares, Tensor sums, Tensor cross, Tensor dstudent_map, Tensor dteacher_map,"
      " Tensor dstates)");
  m.def("layer_pair_rows(Tensor rows, Tensor maps, SymInt[] widths) -> Tensor");
  m.def("layer_pair_products(Tensor teacher_map, Tensor student_map, SymInt[] widths) -> Tensor");
  m.def(
      "layer_pair_moment_maps(Tensor teacher_map, Tensor student_map, SymInt[] widths, SymInt[] "
      "student_widths,"
      " Tensor[] second, Tensor mean, Tensor rest, Tensor products, Tensor cross, float count,"
      " Tensor attention, Tensor offset, Tensor u, bool want_teacher_map, bool want_student)"
      " -> (Tensor square, Tensor inner, Tensor dteacher_map, Tensor cross_map)");
  m.def(
      "layer_pair_near(Tensor teacher, SymInt[] widths, Tensor[] states, Tensor? nodes, Tensor? "
      "weight,"
      " Tensor teacher_centre, Tensor centre, Tensor teacher_map, Tensor student_map,"
      " Tensor offset, Tensor near) -> Tensor");
  m.def(
      "conv(Tensor rowptr, Tensor col, Tensor? value, Tensor x, Tensor? weight, Tensor? bias,"
      " Tensor? x_0, float alpha, float beta, bool relu, bool aggregate_first, bool keep_mixed,"
      " float p, Tensor? seed, int layer, int step) -> (Tensor out, Tensor sums, Tensor mixed)");
  m.def(
      "conv_backward(Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor dout,"
      " Tensor? dsums, Tensor? out, Tensor? features, Tensor? weight, float alpha, float beta,"
      " float p, Tensor? seed, int layer, int step, bool aggregate_first, bool want_x,"
      " bool want_weight, bool want_x_0)"
      " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dx_0)");
  m.def(
      "kl_div(Tensor logits, Tensor target, Tensor? mask, float temperature)"
      " -> (Tensor loss, Tensor correct)");
  m.def(
      "kl_div_backward(Tensor dloss, Tensor logits, Tensor target, Tensor? mask,"
      " float temperature) -> Tensor");
  m.def(
      "pair_infonce(Tensor student, Tensor teacher, Tensor weight, float temperature,"
      " bool want_student, bool want_teacher)"
      " -> (Tensor dissimilarity, Tensor dstudent, Tensor dteacher)");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor");
  m.def(
      "linear_backward(Tensor dout, Tensor? out, Tensor x, Tensor weight, bool want_x,"
      " bool want_weight) -> (Tensor dx, Tensor dweight_t, Tensor dbias)");
  m.def(
      "edge_attention(Tensor rowptr, Tensor col, Tensor x, Tensor? x_dst, Tensor att_src,"
      " Tensor? att_dst, Tensor? score_edge, float negative_slope, float p, Tensor? seed, int"
      " layer, int step) -> (Tensor out, Tensor stats, Tensor score_src, Tensor score_dst)");
  m.def(
      "edge_attention_backward(Tensor rowptr, Tensor col, Tensor rowptr_t, Tensor col_t,"
      " Tensor perm, Tensor dout, Tensor x, Tensor? x_dst, Tensor att_src, Tensor? att_dst,"
      " Tensor? score_edge, Tensor stats, Tensor score_src, Tensor score_dst, float"
      " negative_slope, float p, Tensor? seed, int layer, int step, bool want_edge) -> (Tensor"
      " dx, Tensor dx_dst, Tensor datt_src, Tensor datt_dst, Tensor dscore_edge)");
  m.def(
      "edge_attention_v2(Tensor rowptr, Tensor col, Tensor x, Tensor x_dst, Tensor att, float"
      " negative_slope, float p, Tensor? seed, int layer, int step) -> (Tensor out, Tensor"
      " stats)");
  m.def(
      "edge_attention_v2_backward(Tensor rowptr, Tensor col, Tensor rowptr_t, Tensor col_t,"
      " Tensor perm, Tensor dout, Tensor x, Tensor x_dst, Tensor att, Tensor stats, float"
      " negative_slope, float p, Tensor? seed, int layer, int step) -> (Tensor dx, Tensor"
      " dx_dst, Tensor datt)");
  m.def(
      "neighbor_kl(Tensor rowptr, Tensor col, Tensor? rowptr_t, Tensor? col_t, Tensor? perm,"
      " Tensor student, Tensor? teacher, Tensor? log_target, int similarity, float offset,"
      " int power) -> (Tensor loss, Tensor dstudent)");
  m.def(
      "neighbor_log_softmax(Tensor rowptr, Tensor col, Tensor x, int similarity, float offset,"
      " int power) -> Tensor");
  m.def("empty_output(Tensor like, SymInt[] size) -> Tensor");
  m.def("transposed(Tensor x) -> Tensor");
  m.def("pick(Tensor values, Tensor index) -> Tensor");
  m.def(
      "sample_neighbors(Tensor rowptr, Tensor col, Tensor nodes, int[] num_neighbors, bool replace,"
      " Tensor seed, int step) -> (Tensor n_id, Tensor local_rowptr, Tensor local_col, Tensor "
      "e_id)");
  m.def(
      "neighborhood(Tensor rowptr, Tensor col, Tensor? value, Tensor nodes, int num_hops,"
      " Tensor positions) -> (Tensor n_id, Tensor sizes, Tensor local_rowptr, Tensor local_col,"
      " Tensor local_value)");
  m.def(
      "select_rows(Tensor rowptr, Tensor col, Tensor? value, Tensor rows) -> (Tensor, Tensor,"
      " Tensor)");
  m.def("segment_csr(Tensor src, Tensor indptr, bool mean) -> Tensor");
  m.def(
      "segment_csr_extremum(Tensor src, Tensor indptr, bool maximum, bool winners)"
      " -> (Tensor out, Tensor arg)");
  m.def("segment_csr_expand(Tensor out, Tensor indptr, SymInt size) -> Tensor");
  m.def("segment_csr_extremum_dsrc(Tensor arg, Tensor dout, Tensor indptr, SymInt size) -> Tensor");
  m.def(
      "relational(Tensor[] stack, Tensor[] stack_t, SymInt[] pairs, SymInt[] pairs_t, SymInt[] "
      "roots,"
      " Tensor x, Tensor? x_root, Tensor weight, Tensor? root, Tensor? bias, bool mean, bool relu,"
      " SymInt[] orders) -> Tensor");
  m.def(
      "relational_backward(Tensor[] stack, Tensor[] stack_t, Tensor? value_t, SymInt[] pairs,"
      " SymInt[] pairs_t, SymInt[] roots, Tensor dout, Tensor? out, Tensor x, Tensor? x_root,"
      " Tensor weight, Tensor? root, bool mean, SymInt[] orders, bool want_x,"
      " bool want_x_root, bool want_weight, bool want_root, bool want_bias)"
      " -> (Tensor dx, Tensor dx_root, Tensor dweight, Tensor droot, Tensor dbias)");
}

static PyObject* memory_reserved(PyObject*, PyObject*) {
  return PyLong_FromLongLong(abkd::memory_reserved());
}

static PyObject* empty_cache(PyObject*, PyObject*) {
  abkd::empty_cache();
  Py_RETURN_NONE;
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyMethodDef methods[] = {{"memory_reserved", memory_reserved, METH_NOARGS, nullptr},
                                  {"empty_cache", empty_cache, METH_NOARGS, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr) {
    PyModule_AddStringConstant(module, "isa", abkd::isa_name());
  }
  return module;
}
