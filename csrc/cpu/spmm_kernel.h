// spmm, sddmm and their relatives for one instruction set. No include guard: see simd_begin.h.
//
// A row of the output is owned by one thread and its edges are added in order, so results do not
// depend on the number of threads. A tile of the row, up to kTile vectors, stays in registers
// while all edges of the row pass by. Widths that are no multiple of the vector end in a vector
// that overlaps the one before it: the same sums are computed twice, and no lane is masked.
namespace abkd {
namespace ABKD_ISA {

#include "simd.h"

constexpr int kTile = 8;
constexpr int kExtremumTile = 4;

// -- sum and mean --------------------------------------------------------------------------

// A row's edges, and the features of the sources from the tile's first on.
template <typename T, typename I>
struct Row {
  const I* col;
  const Acc<T>* value;
  int64_t degree;
  const T* x;
  int64_t width;
};

// Features [0, last + W) of one row: N vectors, the last of them at `last`.
template <typename T, typename I, int W, int N, bool WEIGHTED>
inline void sum_tile(const Row<T, I>& row, Acc<T> divisor, int64_t last, T* out) {
  using V = Vec<Acc<T>, W>;
  V acc[N] = {};
  for (int64_t e = 0; e < row.degree; ++e) {
    const T* source = row.x + static_cast<int64_t>(row.col[e]) * row.width;
    for (int k = 0; k < N; ++k) {
      const V v = Load<W>::of(source + (k + 1 < N ? k * W : last));
      acc[k] += WEIGHTED ? row.value[e] * v : v;
    }
  }
  for (int k = 0; k < N; ++k) {
    const V v = divisor == 1 ? acc[k] : acc[k] / divisor;
    Store<W>::to(out + (k + 1 < N ? k * W : last), v);
  }
}

// Rows [begin, end), features [start, start + last + W).
template <typename T, typename I, int W, int N, bool WEIGHTED>
void sum_tiles(const SpmmArgs& args, int64_t begin, int64_t end, int64_t start, int64_t last) {
  const I* rowptr = static_cast<const I*>(args.csr.rowptr);
  const I* col = static_cast<const I*>(args.csr.col);
  const Acc<T>* value = static_cast<const Acc<T>*>(args.value);
  const T* x = static_cast<const T*>(args.x) + start;
  T* out = static_cast<T*>(args.out) + start;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = rowptr[i];
    const int64_t degree = rowptr[i + 1] - first;
    const Acc<T> divisor = args.mean && degree > 1 ? static_cast<Acc<T>>(degree) : 1;
    const Row<T, I> row = {col + first, WEIGHTED ? value + first : nullptr, degree, x, args.width};
    sum_tile<T, I, W, N, WEIGHTED>(row, divisor, last, out + i * args.width);
  }
}

template <typename T, typename I, int W>
struct SumRows {
  static void run(const SpmmArgs& args, int64_t begin, int64_t end) {
    const int64_t vectors = (args.width + W - 1) / W;
    const int64_t tiles = (vectors + kTile - 1) / kTile;
    const int64_t per_tile = (vectors + tiles - 1) / tiles;
    for (int64_t first = 0; first < vectors; first += per_tile) {
      const int64_t count = first + per_tile < vectors ? per_tile : vectors - first;
      const int64_t stop = first + count < vectors ? (first + count) * W : args.width;
      const int64_t last = stop - W - first * W;
      if (args.value == nullptr) {
        by_count<false>(args, begin, end, count, first * W, last);
      } else {
        by_count<true>(args, begin, end, count, first * W, last);
      }
    }
  }

  template <bool WEIGHTED>
  static void by_count(const SpmmArgs& args, int64_t begin, int64_t end, int64_t count,
                       int64_t start, int64_t last) {
    constexpr void (*kBodies[kTile])(const SpmmArgs&, int64_t, int64_t, int64_t, int64_t) = {
        sum_tiles<T, I, W, 1, WEIGHTED>, sum_tiles<T, I, W, 2, WEIGHTED>,
        sum_tiles<T, I, W, 3, WEIGHTED>, sum_tiles<T, I, W, 4, WEIGHTED>,
        sum_tiles<T, I, W, 5, WEIGHTED>, sum_tiles<T, I, W, 6, WEIGHTED>,
        sum_tiles<T, I, W, 7, WEIGHTED>, sum_tiles<T, I, W, 8, WEIGHTED>};
    kBodies[count - 1](args, begin, end, start, last);
  }
};

// -- max and min ---------------------------------------------------------------------------

// N vectors from x and their winners' edge ids. The minimum is the maximum of negated messages.
template <typename T, typename I, int W, int N>
inline void extremum_tile(const Row<T, I>& row, I first, Acc<T> sign, int64_t last, T* out,
                          I* arg) {
  using V = Vec<Acc<T>, W>;
  using M = Vec<Int<Acc<T>>, W>;
  V best[N] = {};
  M winner[N] = {};
  for (int64_t e = 0; e < row.degree; ++e) {
    const T* source = row.x + static_cast<int64_t>(row.col[e]) * row.width;
    const Acc<T> weight = row.value == nullptr ? sign : sign * row.value[e];
    for (int k = 0; k < N; ++k) {
      const V message = weight * Load<W>::of(source + (k + 1 < N ? k * W : last));
      if (e == 0) {
        best[k] = message;
        continue;
      }
      // NaN beats every number and loses to an earlier NaN.
      const M take = (message > best[k]) | ((message != message) & (best[k] == best[k]));
      best[k] = take ? message : best[k];
      winner[k] = take ? winner[k] - winner[k] + static_cast<Int<Acc<T>>>(e) : winner[k];
    }
  }
  for (int k = 0; k < N; ++k) {
    const int64_t offset = k + 1 < N ? k * W : last;
    const V v = row.degree == 0 ? V{} : best[k] * sign;
    Store<W>::to(out + offset, v);
    for (int lane = 0; lane < W; ++lane) {
      arg[offset + lane] = row.degree == 0 ? I(-1) : first + static_cast<I>(winner[k][lane]);
    }
  }
}

template <typename T, typename I, int W>
struct ExtremumRows {
  static void run(const SpmmArgs& args, int64_t begin, int64_t end) {
    const I* rowptr = static_cast<const I*>(args.csr.rowptr);
    const I* col = static_cast<const I*>(args.csr.col);
    const Acc<T>* value = static_cast<const Acc<T>*>(args.value);
    const Acc<T> sign = args.maximum ? 1 : -1;
    for (int64_t i = begin; i < end; ++i) {
      const I first = rowptr[i];
      const Acc<T>* weights = value == nullptr ? nullptr : value + first;
      for (int64_t f = 0; f < args.width; f += kExtremumTile * W) {
        const int64_t left = args.width - f;
        const int64_t last = (left < kExtremumTile * W ? left : kExtremumTile * W) - W;
        const T* x = static_cast<const T*>(args.x) + f;
        const Row<T, I> row = {col + first, weights, rowptr[i + 1] - first, x, args.width};
        T* out = static_cast<T*>(args.out) + i * args.width + f;
        I* arg = static_cast<I*>(args.arg) + i * args.width + f;
        if (left <= W) {
          extremum_tile<T, I, W, 1>(row, first, sign, last, out, arg);
        } else if (left <= 2 * W) {
          extremum_tile<T, I, W, 2>(row, first, sign, last, out, arg);
        } else if (left <= 3 * W) {
          extremum_tile<T, I, W, 3>(row, first, sign, last, out, arg);
        } else {
          extremum_tile<T, I, W, kExtremumTile>(row, first, sign, last, out, arg);
        }
      }
    }
  }
};

// dx[j] = sum over edges e out of j of value[e] * dout[i] where edge e won row i.
template <typename T, typename I>
void extremum_dx_rows(const ExtremumDxArgs& args, void* scratch, int64_t begin, int64_t end) {
  const I* rowptr = static_cast<const I*>(args.csr.rowptr);
  const I* col = static_cast<const I*>(args.csr.col);
  const Acc<T>* value = static_cast<const Acc<T>*>(args.value);
  Acc<T>* acc = static_cast<Acc<T>*>(scratch);
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t f = 0; f < args.width; ++f) {
      acc[f] = 0;
    }
    for (int64_t t = rowptr[j]; t < rowptr[j + 1]; ++t) {
      const int64_t row = static_cast<int64_t>(col[t]) * args.width;
      const I edge = static_cast<I>(args.perm[t]);
      const Acc<T> weight = value == nullptr ? 1 : value[edge];
      const I* arg = static_cast<const I*>(args.arg) + row;
      const T* dout = static_cast<const T*>(args.dout) + row;
      for (int64_t f = 0; f < args.width; ++f) {
        const Acc<T> d = weight * Load<1>::of(dout + f)[0];
        acc[f] += arg[f] == edge ? d : 0;
      }
    }
    T* out = static_cast<T*>(args.out) + j * args.width;
    for (int64_t f = 0; f < args.width; ++f) {
      Store<1>::to(out + f, Vec<Acc<T>, 1>{acc[f]});
    }
  }
}

// dvalue[e] = sum over the features f that edge e won of dout[i, f] * x[col[e], f].
template <typename T, typename I>
void extremum_dvalue_rows(const ExtremumDvalueArgs& args, int64_t begin, int64_t end) {
  const I* rowptr = static_cast<const I*>(args.csr.rowptr);
  const I* col = static_cast<const I*>(args.csr.col);
  const T* x = static_cast<const T*>(args.x);
  Acc<T>* out = static_cast<Acc<T>*>(args.out);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
      out[e] = 0;
    }
    const I* arg = static_cast<const I*>(args.arg) + i * args.width;
    const T* dout = static_cast<const T*>(args.dout) + i * args.width;
    for (int64_t f = 0; f < args.width; ++f) {
      if (arg[f] >= 0) {
        const T* source = x + static_cast<int64_t>(col[arg[f]]) * args.width + f;
        out[arg[f]] += Load<1>::of(dout + f)[0] * Load<1>::of(source)[0];
      }
    }
  }
}

// -- sddmm ---------------------------------------------------------------------------------

template <typename T, typename I, int W>
struct SddmmRows {
  using V = Vec<Acc<T>, W>;
  using M = Vec<Int<Acc<T>>, W>;

  static void run(const SddmmArgs& args, int64_t begin, int64_t end) {
    const I* rowptr = static_cast<const I*>(args.csr.rowptr);
    const I* col = static_cast<const I*>(args.csr.col);
    Acc<T>* out = static_cast<Acc<T>*>(args.out);
    const int64_t width = args.width;
    // The last vector overlaps the one before it; only its new lanes count.
    M fresh = {};
    for (int lane = 0; lane < W; ++lane) {
      fresh[lane] = lane >= W - width % W ? -1 : 0;
    }
    for (int64_t i = begin; i < end; ++i) {
      const T* a = static_cast<const T*>(args.a) + i * width;
      for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
        const T* b = static_cast<const T*>(args.b) + static_cast<int64_t>(col[e]) * width;
        out[e] = dot(a, b, width, fresh);
      }
    }
  }

  static Acc<T> dot(const T* a, const T* b, int64_t width, M fresh) {
    V acc[4] = {};
    int64_t f = 0;
    for (; f + 4 * W <= width; f += 4 * W) {
      for (int k = 0; k < 4; ++k) {
        acc[k] += Load<W>::of(a + f + k * W) * Load<W>::of(b + f + k * W);
      }
    }
    for (; f + W <= width; f += W) {
      acc[0] += Load<W>::of(a + f) * Load<W>::of(b + f);
    }
    if (f < width) {
      const int64_t last = width - W;
      const V product = Load<W>::of(a + last) * Load<W>::of(b + last);
      acc[1] += fresh ? product : V{};
    }
    return LaneSum<Acc<T>, W>::of((acc[0] + acc[1]) + (acc[2] + acc[3]));
  }
};

// -- dispatch ------------------------------------------------------------------------------

// The widest vector that the features fill at least once.
template <template <typename, typename, int> class Rows, typename T, typename I, int W>
struct ByWidth {
  template <typename Args>
  static void run(const Args& args, int64_t begin, int64_t end) {
    if (args.width >= W) {
      Rows<T, I, W>::run(args, begin, end);
    } else {
      ByWidth<Rows, T, I, W / 2>::run(args, begin, end);
    }
  }
};
template <template <typename, typename, int> class Rows, typename T, typename I>
struct ByWidth<Rows, T, I, 0> {
  template <typename Args>
  static void run(const Args&, int64_t, int64_t) {}  // no features: nothing to write
};

#define ABKD_BY_INDEX(function, T, args, ...)               \
  (args).csr.wide ? function(T, int64_t)(args, __VA_ARGS__) \
                  : function(T, int32_t)(args, __VA_ARGS__)

#define ABKD_BY_TYPE(function, args, ...)                   \
  switch ((args).dtype) {                                   \
    case Dtype::kFloat32:                                   \
      ABKD_BY_INDEX(function, float, args, __VA_ARGS__);    \
      break;                                                \
    case Dtype::kFloat64:                                   \
      ABKD_BY_INDEX(function, double, args, __VA_ARGS__);   \
      break;                                                \
    case Dtype::kBFloat16:                                  \
      ABKD_BY_INDEX(function, BFloat16, args, __VA_ARGS__); \
      break;                                                \
    case Dtype::kFloat16:                                   \
      ABKD_BY_INDEX(function, Float16, args, __VA_ARGS__);  \
      break;                                                \
  }

#define ABKD_SUM(T, I) (ByWidth<SumRows, T, I, kLanes<T>>::run)
#define ABKD_EXTREMUM(T, I) (ByWidth<ExtremumRows, T, I, kLanes<T>>::run)
#define ABKD_SDDMM(T, I) (ByWidth<SddmmRows, T, I, kLanes<T>>::run)
#define ABKD_EXTREMUM_DX(T, I) (extremum_dx_rows<T, I>)
#define ABKD_EXTREMUM_DVALUE(T, I) (extremum_dvalue_rows<T, I>)

inline void spmm(const SpmmArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_TYPE(ABKD_SUM, args, begin, end)
}
inline void spmm_extremum(const SpmmArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_TYPE(ABKD_EXTREMUM, args, begin, end)
}
inline void sddmm(const SddmmArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_TYPE(ABKD_SDDMM, args, begin, end)
}
inline void spmm_extremum_dx(const ExtremumDxArgs& args, void* scratch, int64_t begin,
                             int64_t end) {
  ABKD_BY_TYPE(ABKD_EXTREMUM_DX, args, scratch, begin, end)
}
inline void spmm_extremum_dvalue(const ExtremumDvalueArgs& args, int64_t begin,
                                 int64_t end){ABKD_BY_TYPE(ABKD_EXTREMUM_DVALUE, args, begin, end)}

#include "conv_kernel.h"

#define ABKD_STRING_(text) #text
#define ABKD_STRING(text) ABKD_STRING_(text)
const Kernels table = {
  ABKD_STRING(ABKD_ISA),
  spmm,
  spmm_extremum,
  sddmm,
  spmm_extremum_dx,
  spmm_extremum_dvalue,
  dropout,
  conv,
  transform,
  conv_grad
};

}  // namespace ABKD_ISA
}  // namespace abkd
