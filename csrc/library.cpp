// Operator schemas, and the empty Python module whose import registers them.
//
// Kernels register themselves in csrc/cpu. Shape rules and autograd live in Python, beside the
// public functions. abkd_fast/_backend.py holds the same schemas for installs without this file.

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"

STABLE_TORCH_LIBRARY(abkd_fast, m) {
  m.def("spmm(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool mean) -> Tensor");
  m.def("sddmm(Tensor rowptr, Tensor col, Tensor a, Tensor b) -> Tensor");
  m.def(
      "spmm_extremum(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool maximum)"
      " -> (Tensor out, Tensor arg)");
  m.def(
      "spmm_extremum_dx(Tensor rowptr_t, Tensor col_t, Tensor perm, Tensor? value, Tensor arg,"
      " Tensor dout) -> Tensor");
  m.def(
      "spmm_extremum_dvalue(Tensor rowptr, Tensor col, Tensor x, Tensor arg, Tensor dout) -> "
      "Tensor");
  m.def("dropout(Tensor x, float p, Tensor seed, int layer, int step) -> Tensor");
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
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr) {
    PyModule_AddStringConstant(module, "isa", abkd::cpu_isa());
  }
  return module;
}
