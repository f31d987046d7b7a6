// Rows narrower than a vector: class scores, the layers of a small student. No include guard.
//
// A row takes a whole vector all the same. Loads reach into the row behind, whose lanes are not
// used; stores spill into it before its own store. Only the last row of a block is exact.

constexpr int64_t kNarrowDepth = 64;  // products of more terms leave this to gemm()

template <typename T, int W>
inline Vec<T, W> load_row(const T* row, int64_t width) {
  Vec<T, W> v = {};
  memcpy(&v, row, width * sizeof(T));
  return v;
}

// Sums of columns in the lanes of a vector, added up in double now and then.
template <typename T, int W>
struct NarrowSums {
  double* sums;  // or null
  Vec<T, W> total = {};

  void flush(int64_t n) {
    for (int64_t lane = 0; lane < n && sums != nullptr; ++lane) {
      sums[lane] += total[lane];
    }
    total = Vec<T, W>{};
  }
};

template <typename T, int W>
struct NarrowLayer {
  int64_t n;
  int64_t k;
  const Vec<T, W>* factors;  // k rows
  Vec<T, W> shift;
  Vec<T, W> lowest;
};

// R rows, a power of two; returns their sum. The last row may spill into the one behind, or not
// where it is the last of all.
template <typename T, int W, int R, bool SPILLS>
inline Vec<T, W> narrow_tile(const NarrowLayer<T, W>& layer, const T* a, T* out) {
  using V = Vec<T, W>;
  V acc[R];
  for (int r = 0; r < R; ++r) {
    acc[r] = layer.shift;
  }
  for (int64_t p = 0; p < layer.k; ++p) {
    for (int r = 0; r < R; ++r) {
      acc[r] += a[r * layer.k + p] * layer.factors[p];
    }
  }
  for (int r = 0; r < R; ++r) {
    acc[r] = acc[r] < layer.lowest ? layer.lowest : acc[r];  // NaN stays
  }
  for (int r = 0; r < R; ++r) {
    if (SPILLS || r + 1 < R) {
      Store<W>::to(out + r * layer.n, acc[r]);
    } else {
      memcpy(out + r * layer.n, &acc[r], layer.n * sizeof(T));
    }
  }
  for (int half = R / 2; half >= 1; half /= 2) {
    for (int r = 0; r < half; ++r) {
      acc[r] += acc[r + half];
    }
  }
  return acc[0];
}

// out = act(a b + bias), sums (or null) += out: a [m, k], b [k, n], n <= W <= 2 n.
template <typename T, int W>
void narrow_product(int64_t m, int64_t n, int64_t k, const T* a, const T* b, const T* bias,
                    T lowest, T* out, double* sums) {
  using V = Vec<T, W>;
  constexpr int kRows = 8;
  static_assert(kColumnRows % kRows == 0, "sums are added up after whole tiles");
  V factors[kNarrowDepth];
  for (int64_t p = 0; p < k; ++p) {
    factors[p] = load_row<T, W>(b + p * n, n);
  }
  const V shift = bias == nullptr ? V{} : load_row<T, W>(bias, n);
  const NarrowLayer<T, W> layer = {n, k, factors, shift, V{} + lowest};
  NarrowSums<T, W> columns = {sums};
  for (int64_t start = 0; start < m; start += kColumnRows) {
    const int64_t stop = start + kColumnRows < m ? start + kColumnRows : m;
    int64_t i = start;
    for (; i + kRows <= stop && i + kRows < m; i += kRows) {
      columns.total += narrow_tile<T, W, kRows, true>(layer, a + i * k, out + i * n);
    }
    for (; i < stop && i + 1 < m; ++i) {
      columns.total += narrow_tile<T, W, 1, true>(layer, a + i * k, out + i * n);
    }
    if (i < stop) {
      columns.total += narrow_tile<T, W, 1, false>(layer, a + i * k, out + i * n);
    }
    columns.flush(n);
  }
}

// c [m, n] += a^T b over `rows` rows of a [rows, m] and b [rows, n], n <= W <= 2 n.
template <typename T, int W>
void narrow_outer(int64_t m, int64_t n, int64_t rows, const T* a, const T* b, T* c) {
  using V = Vec<T, W>;
  constexpr int kColumns = 8;
  for (int64_t i = 0; i < m; i += kColumns) {
    const int64_t count = m - i < kColumns ? m - i : kColumns;
    V acc[kColumns] = {};
    for (int64_t p = 0; p < rows; ++p) {
      const V row = p + 1 < rows ? load_bits<V>(b + p * n) : load_row<T, W>(b + p * n, n);
      for (int r = 0; r < kColumns; ++r) {
        acc[r] += a[p * m + i + (r < count ? r : 0)] * row;
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t j = 0; j < n; ++j) {
        c[(i + r) * n + j] += acc[r][j];
      }
    }
  }
}

// dz = (dout + dsums) where out is positive, sums += dz; all in rows of n <= W <= 2 n.
template <typename T, int W>
void narrow_grad(const GradColumns<T>& at, int64_t rows, double* sums) {
  using V = Vec<T, W>;
  const int64_t n = at.width;
  const V shift = at.dsums == nullptr ? V{} : load_row<T, W>(at.dsums, n);
  V total = {};
  for (int64_t i = 0; i < rows; ++i) {
    const bool last = i + 1 == rows;
    const auto row = [&](const T* x) {
      return last ? load_row<T, W>(x + i * n, n) : load_bits<V>(x + i * n);
    };
    V v = row(at.dout) + shift;
    if (at.out != nullptr) {
      v = row(at.out) <= 0 ? V{} : v;
    }
    total += v;
    memcpy(at.dz + i * n, &v, last ? n * sizeof(T) : sizeof(V));
  }
  for (int64_t lane = 0; lane < n; ++lane) {
    sums[lane] += total[lane];
  }
}

template <int W>
struct Lanes {
  static constexpr int value = W;
};

// Calls run with the narrowest vector for rows of n; false where n is 1 or wider than any.
template <typename T, int W = 4, typename Run>
inline bool with_narrow(int64_t n, const Run& run) {
  if constexpr (W <= kLanes<T>) {
    if (1 < n && n <= W) {
      run(Lanes<W>{});
      return true;
    }
    return with_narrow<T, 2 * W>(n, run);
  }
  return false;
}
