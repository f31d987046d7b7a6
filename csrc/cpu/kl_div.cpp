// Host side of kl_div on the CPU: checks, outputs, blocks of rows shared by threads.

#include <algorithm>
#include <tuple>

#include "memory.h"

namespace abkd {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kRows = 1024;  // of a block: one partial sum each, whatever the threads

// What both directions read; keeps the tensors alive.
class KlDivInputs {
 public:
  KlDivInputs(const Tensor& logits, const Tensor& target, const OptionalTensor& mask,
              double temperature)
      : logits_(as_contiguous(logits)), target_(as_contiguous(target)) {
    const ScalarType dtype = logits.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "logits must be float32 or float64");
    check_matrix("logits", logits, dtype);
    check_size("target", target, 0, logits.size(0));
    args_.dtype = feature_dtype("logits", logits);
    args_.logits = logits_.data_ptr();
    args_.classes = logits.size(1);
    args_.inverse_temperature = 1 / temperature;
    if (target.scalar_type() == ScalarType::Long) {
      STD_TORCH_CHECK(target.dim() == 1, "labels must be [N]");
      args_.labels = static_cast<const int64_t*>(target_.data_ptr());
    } else {
      check_matrix("target", target, dtype);
      check_size("target", target, 1, logits.size(1));
      args_.log_target = target_.data_ptr();
    }
    if (mask.has_value()) {
      mask_ = as_contiguous(*mask);
      STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && mask->dim() == 1,
                      "mask must be [N] bool");
      check_size("mask", *mask, 0, logits.size(0));
      args_.mask = static_cast<const bool*>(mask_->data_ptr());
    }
    count_rows();
  }

  int64_t rows() const { return logits_.size(0); }
  int64_t counted() const { return counted_; }
  ScalarType dtype() const { return logits_.scalar_type(); }
  KlDivArgs args() const { return args_; }

  // Calls run(args with scratch, first row, last row, block) for all blocks.
  template <typename Run>
  void blocks(const KlDivArgs& given, const Run& run) const {
    torch::stable::parallel_for(0, blocks(), 2, [&](int64_t begin, int64_t end) {
      std::vector<double> scratch(kl_div_space(given.classes));
      KlDivArgs args = given;
      args.scratch = scratch.data();
      for (int64_t block = begin; block < end; ++block) {
        run(args, block * kRows, std::min((block + 1) * kRows, rows()), block);
      }
    });
  }
  int64_t blocks() const { return (rows() + kRows - 1) / kRows; }

 private:
  void count_rows() {
    for (int64_t i = 0; i < rows(); ++i) {
      if (args_.mask != nullptr && !args_.mask[i]) {
        continue;
      }
      ++counted_;
      const int64_t label = args_.labels == nullptr ? 0 : args_.labels[i];
      STD_TORCH_CHECK(0 <= label && label < args_.classes, "target must be labels in [0, ",
                      args_.classes, "), got ", label, " at node ", i);
    }
  }

  Tensor logits_;
  Tensor target_;
  OptionalTensor mask_;
  KlDivArgs args_ = {};
  int64_t counted_ = 0;
};

std::tuple<Tensor, Tensor> kl_div_cpu(Tensor logits, Tensor target, OptionalTensor mask,
                                      double temperature) {
  const KlDivInputs inputs(logits, target, mask, temperature);
  std::vector<double> losses(inputs.blocks());
  std::vector<int64_t> rights(inputs.blocks());
  inputs.blocks(inputs.args(),
                [&](const KlDivArgs& args, int64_t begin, int64_t end, int64_t block) {
                  losses[block] = dense_kernels().kl_div(args, begin, end, &rights[block]);
                });
  double total = 0;
  int64_t right = 0;
  for (int64_t block = 0; block < inputs.blocks(); ++block) {
    total += losses[block];
    right += rights[block];
  }
  total /= static_cast<double>(inputs.counted());  // no rows: NaN, as torch's mean of nothing
  Tensor loss = empty_output({}, inputs.dtype());
  Tensor correct = empty_output({}, ScalarType::Long);
  if (inputs.dtype() == ScalarType::Double) {
    *static_cast<double*>(loss.data_ptr()) = total;
  } else {
    *static_cast<float*>(loss.data_ptr()) = static_cast<float>(total);
  }
  *static_cast<int64_t*>(correct.data_ptr()) = right;
  return {loss, correct};
}

Tensor kl_div_backward_cpu(Tensor dloss, Tensor logits, Tensor target, OptionalTensor mask,
                           double temperature) {
  const KlDivInputs inputs(logits, target, mask, temperature);
  STD_TORCH_CHECK(dloss.numel() == 1 && dloss.scalar_type() == inputs.dtype(),
                  "dloss must be one element of the dtype of logits");
  Tensor dlogits = empty_output({logits.size(0), logits.size(1)}, inputs.dtype());
  const double upstream = inputs.dtype() == ScalarType::Double
                              ? *static_cast<const double*>(dloss.data_ptr())
                              : *static_cast<const float*>(dloss.data_ptr());
  KlDivArgs given = inputs.args();
  given.dlogits = dlogits.data_ptr();
  given.scale = upstream / temperature / static_cast<double>(inputs.counted());
  inputs.blocks(given, [&](const KlDivArgs& args, int64_t begin, int64_t end, int64_t) {
    dense_kernels().kl_div_grad(args, begin, end);
  });
  return dlogits;
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("kl_div", TORCH_BOX(&abkd::kl_div_cpu));
  m.impl("kl_div_backward", TORCH_BOX(&abkd::kl_div_backward_cpu));
}
