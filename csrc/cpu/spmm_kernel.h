// Sums and means over neighbours, and products at edges. No include guard: see each_isa.h.
//
// A row of the output is owned by one thread, which adds its edges in an order of the graph's, so
// results do not depend on the number of threads; sum_kernel.h says what holds for rows that
// threads share.

// clang-format off: each file uses the ones before it
#include "simd.h"
#include "sum_kernel.h"
#include "by_width.h"
#include "sddmm_kernel.h"
// clang-format on

#define ABKD_SUM(T, I) (ByWidth<SumRows, T, I, kLanes<T>>::run)
#define ABKD_SUM_CHUNK(T, I) (ByWidth<SumChunks, T, I, kLanes<T>>::run)
#define ABKD_ADD_CHUNKS(T, I) (add_chunks<T, I>)
#define ABKD_SDDMM(T, I) (ByWidth<SddmmRows, T, I, kLanes<T>>::run)

inline void spmm(const SpmmArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_SUM, args, begin, end)
}
inline void spmm_chunk(const SpmmArgs& args, int64_t first, int64_t stop, void* sums) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_SUM_CHUNK, args, first, stop, sums)
}
inline void spmm_add_chunks(const SpmmArgs& args, int64_t row, void* sums, int64_t chunks) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_ADD_CHUNKS, args, row, sums, chunks)
}
inline void sddmm(const SddmmArgs& args, int64_t first, int64_t stop) {
  ABKD_BY_TYPE(ABKD_SDDMM, args, first, stop)
}

const SpmmKernels spmm_table = {spmm, spmm_chunk, spmm_add_chunks, sddmm};
