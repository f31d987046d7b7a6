// Values by index, in several threads: torch's index_select of a vector takes one.

#include <atomic>

#include "memory.h"
#include "parallel.h"

namespace abkd {
namespace {

constexpr int64_t kNone = -1;

// out[i] = values[index[i]]; the place of an index that is none, or kNone.
template <typename Bits>
int64_t pick(const Tensor& values, const Tensor& index, const Tensor& out) {
  const Bits* from = static_cast<const Bits*>(values.data_ptr());
  const int64_t* at = static_cast<const int64_t*>(index.data_ptr());
  Bits* to = static_cast<Bits*>(out.data_ptr());
  const uint64_t size = values.numel();
  std::atomic<int64_t> outside{kNone};
  parallel_ranges(index.numel(), parts_for(index.numel(), 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (static_cast<uint64_t>(at[i]) >= size) {
        outside = i;
        return;
      }
      to[i] = from[at[i]];
    }
  });
  return outside;
}

Tensor pick_cpu(Tensor values, Tensor index) {
  STD_TORCH_CHECK(values.dim() == 1, "values must have 1 dimension, got ", values.dim());
  feature_dtype("values", values);  // one of the four
  STD_TORCH_CHECK(index.dim() == 1 && index.scalar_type() == ScalarType::Long,
                  "index must be int64 [m]");
  const Tensor input = as_contiguous(values);
  const Tensor places = as_contiguous(index);
  const Tensor out = empty_output({index.size(0)}, values.scalar_type());
  const int64_t bytes = bytes_of(values.scalar_type());
  const int64_t outside = bytes == 8   ? pick<uint64_t>(input, places, out)
                          : bytes == 4 ? pick<uint32_t>(input, places, out)
                                       : pick<uint16_t>(input, places, out);
  STD_TORCH_CHECK(outside == kNone, "index must lie in [0, ", values.numel(), "), got ",
                  static_cast<const int64_t*>(places.data_ptr())[outside]);
  return out;
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) { m.impl("pick", TORCH_BOX(&abkd::pick_cpu)); }
