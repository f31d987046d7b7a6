// What a kernel is made for: vector width and index dtype. No include guard: see each_isa.h.
#include "by_dtype.h"

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

#define ABKD_BY_INDEX(function, T, args, ...)               \
  (args).csr.wide ? function(T, int64_t)(args, __VA_ARGS__) \
                  : function(T, int32_t)(args, __VA_ARGS__)

// Segment reductions have no columns.
#define ABKD_BY_COLUMNS(function, T, args, ...)              \
  (args).csr.arange ? function(T, Arange)(args, __VA_ARGS__) \
                    : ABKD_BY_INDEX(function, T, args, __VA_ARGS__)

#define ABKD_BY_TYPE(function, args, ...) ABKD_BY_DTYPE(ABKD_BY_INDEX, function, args, __VA_ARGS__)
