// Host side of dropout on the CPU: checks, output, threads. dropout_mask() serves conv too.

#include "dropout.h"

#include <algorithm>

#include "memory.h"

namespace abkd {

DropoutMask dropout_mask(double p, const Tensor& seed, int64_t layer, int64_t step) {
  constexpr int64_t kWord = int64_t{1} << 32;
  STD_TORCH_CHECK(p >= 0 && p < 1, "p must be in [0, 1), got ", p);
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                  "seed must be one int64");
  STD_TORCH_CHECK(layer >= 0 && layer < kWord, "layer must be in [0, 2^32), got ", layer);
  STD_TORCH_CHECK(step >= 0 && step < kWord, "step must be in [0, 2^32), got ", step);
  const auto key = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data_ptr()));
  const auto threshold = static_cast<uint32_t>(p * static_cast<double>(kWord));
  return {key, static_cast<uint32_t>(layer), static_cast<uint32_t>(step), threshold, 1 / (1 - p)};
}

void parallel_dropout(const DropoutArgs& args, int64_t count) {
  constexpr int64_t kBlock = 1 << 14;  // a multiple of every kernel's batch of random words
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    dense_kernels().dropout(args, begin * kBlock, std::min(end * kBlock, count));
  });
}

namespace {

Tensor dropout_cpu(Tensor x, double p, Tensor seed, int64_t layer, int64_t step) {
  const DropoutMask mask = dropout_mask(p, seed, layer, step);
  const Dtype type = feature_dtype("x", x);
  const Tensor input = torch::stable::contiguous(x);
  Tensor out = empty_output({x.sizes().begin(), x.sizes().end()}, x.scalar_type());
  parallel_dropout({type, input.data_ptr(), out.data_ptr(), mask}, x.numel());
  return out;
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) { m.impl("dropout", TORCH_BOX(&abkd::dropout_cpu)); }
