// New tensors for results.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <vector>

#include "../check.h"

namespace abkd {

// Asks for 2 MiB pages: the first write to fresh memory otherwise costs a fault every 4 KiB, and
// allocators return large blocks to the system between steps. Advice only.
inline void advise_huge_pages(const Tensor& tensor, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1 << 21;
  const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (start + kPage - 1) / kPage * kPage;
  const uintptr_t last = (start + bytes) / kPage * kPage;
  if (bytes >= static_cast<int64_t>(2 * kPage) && first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

// An uninitialised tensor that its caller fills from the first element to the last.
inline Tensor empty_output(const std::vector<int64_t>& sizes, ScalarType dtype) {
  const Tensor tensor = torch::stable::empty(sizes, dtype);
  advise_huge_pages(tensor, tensor.numel() * static_cast<int64_t>(tensor.element_size()));
  return tensor;
}

}  // namespace abkd
