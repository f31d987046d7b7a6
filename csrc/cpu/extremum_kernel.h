// Maximum and minimum over the edges of a row, and their gradients. The minimum is the maximum of
// negated messages. No include guard: see each_isa.h.

// clang-format off: each file uses the ones before it
#include "simd.h"
#include "sum_kernel.h"
#include "by_width.h"
// clang-format on

constexpr int kExtremumTile = ABKD_VECTOR_BYTES >= 64 ? 8 : 4;

// NaN beats every number and loses to an earlier NaN.
template <typename V>
inline auto beats(V message, V best) -> decltype(message > best) {
  return ~(message <= best) & (best == best);
}

// The extremum in N vectors of features; where WINNERS, also the edge ids.
template <typename T, typename I, int W, int N, bool WINNERS>
inline void extremum_tile(const Edges<T, I>& edges, Id<I> first, Acc<T> sign, T* out, Id<I>* arg) {
  using V = Vec<Acc<T>, W>;
  using M = Vec<Int<Acc<T>>, W>;
  V best[N];
  M winner[N] = {};  // of a row of -infinities too
  for (int k = 0; k < N; ++k) {
    best[k] = V{} - static_cast<Acc<T>>(__builtin_inf());
  }
  for (int64_t e = 0; e < edges.count; ++e) {
    if (edges.ahead != 0) {
      const int64_t coming = edges.col[e + edges.ahead];
      prefetch_tile<T, W, N>(edges.x + coming * edges.width);
    }
    const T* source = edges.x + static_cast<int64_t>(edges.col[e]) * edges.width;
    const Acc<T> weight = edges.value == nullptr ? sign : sign * edges.value[e];
    for (int k = 0; k < N; ++k) {
      const V message = weight * Load<W>::of(source + k * W);
      const M take = beats(message, best[k]);
      best[k] = take ? message : best[k];
      if (WINNERS) {
        winner[k] = take ? M{} + static_cast<Int<Acc<T>>>(e) : winner[k];
      }
    }
  }
  const bool empty = edges.count == 0;
  for (int k = 0; k < N; ++k) {
    Store<W>::to(out + k * W, empty ? V{} : best[k] * sign);
    if (WINNERS) {
      const auto ids = __builtin_convertvector(winner[k], Vec<Id<I>, W>) + first;
      const auto none = Vec<Id<I>, W>{} - 1;
      const Vec<Id<I>, W> chosen = empty ? none : ids;
      memcpy(arg + k * W, &chosen, sizeof(chosen));
    }
  }
}

template <typename T, typename I, int W>
struct ExtremumRows {
  static void run(const SpmmArgs& args, int64_t begin, int64_t end) {
    if (args.arg == nullptr) {
      rows<false>(args, begin, end);
    } else {
      rows<true>(args, begin, end);
    }
  }

  template <bool WINNERS>
  static void rows(const SpmmArgs& args, int64_t begin, int64_t end) {
    const Id<I>* rowptr = static_cast<const Id<I>*>(args.csr.rowptr);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t f = 0; f < args.width;) {
        const int64_t left = args.width - f;
        if (left >= kExtremumTile * W) {
          f = tile<kExtremumTile, WINNERS>(args, rowptr, i, f);
        } else if (left >= 4 * W) {
          f = tile<4, WINNERS>(args, rowptr, i, f);
        } else if (left >= 2 * W) {
          f = tile<2, WINNERS>(args, rowptr, i, f);
        } else {
          f = tile<1, WINNERS>(args, rowptr, i, left >= W ? f : args.width - W);
        }
      }
    }
  }

  // N vectors of row i from feature f on; returns the first feature behind them.
  template <int N, bool WINNERS>
  static int64_t tile(const SpmmArgs& args, const Id<I>* rowptr, int64_t i, int64_t f) {
    const Edges<T, I> edges = edges_of<T, I>(args, rowptr[i], rowptr[i + 1], f);
    T* out = static_cast<T*>(args.out) + i * args.width + f;
    Id<I>* arg = WINNERS ? static_cast<Id<I>*>(args.arg) + i * args.width + f : nullptr;
    extremum_tile<T, I, W, N, WINNERS>(edges, rowptr[i], args.maximum ? 1 : -1, out, arg);
    return f + N * W;
  }
};

// -- gradients -----------------------------------------------------------------------------

// dx[j] = sum over edges e out of j of value[e] * dout[i] where edge e won row i.
template <typename T, typename I, int W>
struct ExtremumDxRows {
  using V = Vec<Acc<T>, W>;
  using M = Vec<Int<Acc<T>>, W>;

  static void run(const ExtremumDxArgs& args, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t f = 0; f < args.width;) {
        const int64_t left = args.width - f;
        if (left >= 4 * W) {
          f = tile<4>(args, j, f);
        } else {
          f = tile<1>(args, j, left >= W ? f : args.width - W);
        }
      }
    }
  }

  template <int N>
  static int64_t tile(const ExtremumDxArgs& args, int64_t j, int64_t f) {
    const I* rowptr = static_cast<const I*>(args.csr.rowptr);
    const I* col = static_cast<const I*>(args.csr.col);
    const Acc<T>* value = static_cast<const Acc<T>*>(args.value);
    V acc[N] = {};
    for (int64_t t = rowptr[j]; t < rowptr[j + 1]; ++t) {
      const int64_t row = static_cast<int64_t>(col[t]) * args.width + f;
      const I edge = static_cast<I>(args.perm[t]);
      const Acc<T> weight = value == nullptr ? 1 : value[edge];
      const I* arg = static_cast<const I*>(args.arg) + row;
      const T* dout = static_cast<const T*>(args.dout) + row;
      for (int k = 0; k < N; ++k) {
        const M won = __builtin_convertvector(load_bits<Vec<I, W>>(arg + k * W) == edge, M);
        const V message = weight * Load<W>::of(dout + k * W);
        acc[k] += won ? message : V{};
      }
    }
    T* out = static_cast<T*>(args.out) + j * args.width + f;
    for (int k = 0; k < N; ++k) {
      Store<W>::to(out + k * W, acc[k]);
    }
    return f + N * W;
  }
};

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

#define ABKD_EXTREMUM(T, I) (ByWidth<ExtremumRows, T, I, kLanes<T>>::run)
#define ABKD_EXTREMUM_DX(T, I) (ByWidth<ExtremumDxRows, T, I, kLanes<T>>::run)
#define ABKD_EXTREMUM_DVALUE(T, I) (extremum_dvalue_rows<T, I>)

inline void extremum(const SpmmArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_DTYPE(ABKD_BY_COLUMNS, ABKD_EXTREMUM, args, begin, end)
}
inline void extremum_dx(const ExtremumDxArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_TYPE(ABKD_EXTREMUM_DX, args, begin, end)
}
inline void extremum_dvalue(const ExtremumDvalueArgs& args, int64_t begin, int64_t end) {
  ABKD_BY_TYPE(ABKD_EXTREMUM_DVALUE, args, begin, end)
}

const ExtremumKernels extremum_table = {extremum, extremum_dx, extremum_dvalue};
