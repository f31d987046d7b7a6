// spmm, sddmm and their relatives for one instruction set. No include guard: see each_isa.h.
//
// A row of the output is owned by one thread and its edges are added in order, so results do not
// depend on the number of threads; sum_kernel.h says what holds for rows that threads share.
#include "by_dtype.h"
#include "simd.h"
#include "sum_kernel.h"

// -- dispatch ------------------------------------------------------------------------------

// The widest vector that the features fill at least once.
template <template <typename, typename, int> class Rows, typename T, typename I, int W>
struct ByWidth {
  template <typename Args, typename... More>
  static void run(const Args& args, int64_t begin, int64_t end, More... more) {
    if (args.width >= W) {
      Rows<T, I, W>::run(args, begin, end, more...);
    } else {
      ByWidth<Rows, T, I, W / 2>::run(args, begin, end, more...);
    }
  }
};
template <template <typename, typename, int> class Rows, typename T, typename I>
struct ByWidth<Rows, T, I, 0> {
  template <typename Args, typename... More>
  static void run(const Args&, int64_t, int64_t, More...) {}  // no features: nothing to write
};

#include "extremum_kernel.h"
#include "sddmm_kernel.h"

#define ABKD_BY_INDEX(function, T, args, ...)               \
  (args).csr.wide ? function(T, int64_t)(args, __VA_ARGS__) \
                  : function(T, int32_t)(args, __VA_ARGS__)

// Segment reductions have no columns.
#define ABKD_BY_COLUMNS(function, T, args, ...)              \
  (args).csr.arange ? function(T, Arange)(args, __VA_ARGS__) \
                    : ABKD_BY_INDEX(function, T, args, __VA_ARGS__)

#define ABKD_BY_TYPE(function, args, ...) ABKD_BY_DTYPE(ABKD_BY_INDEX, function, args, __VA_ARGS__)

#define ABKD_SUM(T, I) (ByWidth<SumRows, T, I, kLanes<T>>::run)
#define ABKD_SUM_CHUNK(T, I) (ByWidth<SumChunks, T, I, kLanes<T>>::run)
#define ABKD_ADD_CHUNKS(T, I) (add_chunks<T, I>)
#define ABKD_EXTREMUM(T, I) (ByWidth<ExtremumRows, T, I, kLanes<T>>::run)
#define ABKD_SDDMM(T, I) (ByWidth<SddmmRows, T, I, kLanes<T>>::run)
#define ABKD_EXTREMUM_DX(T, I) (ByWidth<ExtremumDxRows, T, I, kLanes<T>>::run)
#define ABKD_EXTREMUM_DVALUE(T, I) (extremum_dvalue_rows<T, I>)

inline void spmm(const SpmmArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_SUM, args, begin, end)
}
inline void spmm_chunk(const SpmmArgs& args, int64_t first, int64_t stop, void* sums) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_SUM_CHUNK, args, first, stop, sums)
}
inline void spmm_add_chunks(const SpmmArgs& args, int64_t row, void* sums, int64_t chunks) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_ADD_CHUNKS, args, row, sums, chunks)
}
inline void spmm_extremum(const SpmmArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_EXTREMUM, args, begin, end)
}
inline void sddmm(const SddmmArgs& args, int64_t first, int64_t stop) {
  ABKD_BY_TYPE(ABKD_SDDMM, args, first, stop)
}
inline void spmm_extremum_dx(const ExtremumDxArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_TYPE(ABKD_EXTREMUM_DX, args, begin, end)
}
inline void spmm_extremum_dvalue(const ExtremumDvalueArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_TYPE(ABKD_EXTREMUM_DVALUE, args, begin, end)
}

const SpmmKernels spmm_table = {spmm,  spmm_chunk,       spmm_add_chunks,     spmm_extremum,
                                sddmm, spmm_extremum_dx, spmm_extremum_dvalue};
