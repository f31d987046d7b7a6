// Host side of the CUDA kernels: schemas, checks, outputs, and the stream they run on.
//
// A module of its own, so that the CPU kernels load where no CUDA is. The ops have names of their
// own too: abkd_fast/_backend.py decides which back end serves abkd_fast::spmm on a GPU.

#include <Python.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../check.h"
#include "launch.h"
#include "schedule.h"

namespace abkd::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, " failed to launch: ", error == nullptr ? "" : error);
}

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

void check_device(const char* name, const Tensor& tensor, const Tensor& x) {
  STD_TORCH_CHECK(
      tensor.is_cuda() == x.is_cuda() && tensor.get_device_index() == x.get_device_index(), name,
      " must be on the device of x");
}

Tensor empty_like_device(std::vector<int64_t> sizes, ScalarType dtype, const Tensor& x) {
  return torch::stable::empty(sizes, dtype, std::nullopt, x.device());
}

OptionalTensor contiguous_or_none(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(as_contiguous(*tensor)) : std::nullopt;
}

const void* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->data_ptr() : nullptr;
}

// The arguments that all aggregations have, checked, contiguous and alive; and their output.
class Aggregation {
 public:
  Aggregation(const Tensor& rowptr, const Tensor& col, const OptionalTensor& value, const Tensor& x)
      : csr_(rowptr, col), value_(contiguous_or_none(value)), x_(as_contiguous(x)) {
    const ScalarType dtype = x.scalar_type();
    const Dtype type = feature_dtype("x", x);
    check_matrix("x", x, dtype);
    check_device("rowptr", rowptr, x);
    check_device("col", col, x);
    if (value_.has_value()) {
      STD_TORCH_CHECK(value_->dim() == 1 && value_->numel() == csr_.edges(), "value must be [E]");
      STD_TORCH_CHECK(value_->scalar_type() == accumulation_dtype(dtype),
                      "value must be float32, or float64 where x is");
      check_device("value", *value_, x);
    }
    out_ = empty_like_device({csr_.rows(), x.size(1)}, dtype, x);
    partial_ = empty_like_device({slots(), x.size(1)}, accumulation_dtype(dtype), x);
    args_ = {csr_.view(),     csr_.rows(), csr_.edges(),       type, nullptr, x_.data_ptr(),
             out_.data_ptr(), x.size(1),   partial_.data_ptr()};
    args_.value = data_or_null(value_);
  }

  AggregateArgs& args() { return args_; }
  int64_t slots() const { return partial_slots(csr_.edges()); }

  Tensor run(const char* op, const char* (*launch)(const AggregateArgs&, void*)) const {
    if (out_.numel() > 0) {
      const torch::stable::accelerator::DeviceGuard guard(x_.get_device_index());
      check_launch(op, launch(args_, current_stream(x_)));
    }
    return out_;
  }

 private:
  CsrTensors csr_;
  OptionalTensor value_;
  Tensor x_;
  Tensor out_;
  Tensor partial_;
  AggregateArgs args_ = {};
};

// The seed is read by the kernel where it lies on the device, and now where it does not.
Mask mask_of(const Tensor& x, double p, const OptionalTensor& seed, int64_t layer, int64_t step) {
  constexpr int64_t kWord = int64_t{1} << 32;
  STD_TORCH_CHECK(p >= 0 && p < 1, "p must be in [0, 1), got ", p);
  STD_TORCH_CHECK(layer >= 0 && layer < kWord, "layer must be in [0, 2^32), got ", layer);
  STD_TORCH_CHECK(step >= 0 && step < kWord, "step must be in [0, 2^32), got ", step);
  STD_TORCH_CHECK(seed.has_value(), "seed must be given where p > 0");
  STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                  "seed must be one int64");
  if (seed->is_cuda()) {
    check_device("seed", *seed, x);
  }
  const auto* key = static_cast<const int64_t*>(seed->data_ptr());
  const auto threshold = static_cast<uint32_t>(p * static_cast<double>(kWord));
  const uint64_t now = seed->is_cuda() ? 0 : static_cast<uint64_t>(*key);
  const DropoutMask constants = {now, static_cast<uint32_t>(layer), static_cast<uint32_t>(step),
                                 threshold, 1 / (1 - p)};
  return {constants, seed->is_cuda() ? key : nullptr};
}

Tensor spmm(Tensor rowptr, Tensor col, OptionalTensor value, Tensor x, bool mean) {
  Aggregation aggregation(rowptr, col, value, x);
  aggregation.args().mean = mean;
  return aggregation.run("spmm_cuda", launch_spmm);
}

std::tuple<Tensor, Tensor> spmm_extremum(Tensor rowptr, Tensor col, OptionalTensor value, Tensor x,
                                         bool maximum, bool winners) {
  Aggregation aggregation(rowptr, col, value, x);
  const int64_t rows = winners ? rowptr.numel() - 1 : 0;
  const ScalarType index = rowptr.scalar_type();
  Tensor arg = empty_like_device({rows, x.size(1)}, index, x);
  Tensor partial = empty_like_device({aggregation.slots(), x.size(1)}, index, x);
  aggregation.args().maximum = maximum;
  aggregation.args().arg = winners ? arg.data_ptr() : nullptr;
  aggregation.args().partial_arg = partial.data_ptr();
  return {aggregation.run("spmm_extremum_cuda", launch_extremum), arg};
}

// drop(scale * A x + residual_scale * residual), or with drop(x) for x.
Tensor conv_aggregate(Tensor rowptr, Tensor col, OptionalTensor value, Tensor x, double scale,
                      OptionalTensor residual, double residual_scale, double p, OptionalTensor seed,
                      int64_t layer, int64_t step, bool drop_output) {
  Aggregation aggregation(rowptr, col, value, x);
  AggregateArgs& args = aggregation.args();
  args.scale = scale;
  residual = contiguous_or_none(residual);
  if (residual.has_value()) {
    check_matrix("residual", *residual, x.scalar_type());
    check_size("residual", *residual, 0, rowptr.numel() - 1);
    check_size("residual", *residual, 1, x.size(1));
    check_device("residual", *residual, x);
    args.residual = residual->data_ptr();
    args.residual_scale = residual_scale;
  }
  if (p != 0) {
    args.mask = mask_of(x, p, seed, layer, step);
    args.drop_output = drop_output;
    args.drop_input = !drop_output;
  }
  return aggregation.run("conv_aggregate_cuda", launch_conv);
}

Tensor dropout(Tensor x, double p, Tensor seed, int64_t layer, int64_t step) {
  const Mask mask = mask_of(x, p, seed, layer, step);
  const Tensor input = as_contiguous(x);
  Tensor out = torch::stable::empty(x.sizes(), x.scalar_type(), std::nullopt, x.device());
  if (x.numel() > 0) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    const ElementArgs args = {feature_dtype("x", x), input.data_ptr(), out.data_ptr(), x.numel(),
                              mask};
    check_launch("dropout_cuda", launch_dropout(args, current_stream(x)));
  }
  return out;
}

}  // namespace
}  // namespace abkd::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(abkd_fast, m) {
  m.def("spmm_cuda(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool mean) -> Tensor");
  m.def(
      "spmm_extremum_cuda(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool maximum,"
      " bool winners) -> (Tensor out, Tensor arg)");
  m.def(
      "conv_aggregate_cuda(Tensor rowptr, Tensor col, Tensor? value, Tensor x, float scale,"
      " Tensor? residual, float residual_scale, float p, Tensor? seed, int layer, int step,"
      " bool drop_output) -> Tensor");
  m.def("dropout_cuda(Tensor x, float p, Tensor seed, int layer, int step) -> Tensor");
}

#ifndef ABKD_DEVICE  // a test builds this file for the CPU, on an emulated GPU
#define ABKD_DEVICE CUDA
#endif
STABLE_TORCH_LIBRARY_IMPL(abkd_fast, ABKD_DEVICE, m) {
  m.impl("spmm_cuda", TORCH_BOX(&abkd::cuda::spmm));
  m.impl("spmm_extremum_cuda", TORCH_BOX(&abkd::cuda::spmm_extremum));
  m.impl("conv_aggregate_cuda", TORCH_BOX(&abkd::cuda::conv_aggregate));
  m.impl("dropout_cuda", TORCH_BOX(&abkd::cuda::dropout));
}

PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
