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
  T lowest;
};

// R rows; `spills` of them may write into the row behind.
template <typename T, int W, int R>
inline void narrow_tile(const NarrowLayer<T, W>& layer, const T* a, T* out, int64_t spills,
                        Vec<T, W>* total) {
  using V = Vec<T, W>;
  V acc[R] = {};
  for (int64_t p = 0; p < layer.k; ++p) {
    for (int r = 0; r < R; ++r) {
      acc[r] += a[r * layer.k + p] * layer.factors[p];
    }
  }
  for (int r = 0; r < R; ++r) {
    const V z = acc[r] + layer.shift;
    const V kept = z < layer.lowest ? V{} + layer.lowest : z;  // NaN stays
    *total += kept;
    if (r < spills) {
      Store<W>::to(out + r * layer.n, kept);
    } else {
      memcpy(out + r * layer.n, &kept, layer.n * sizeof(T));
    }
  }
}

// out = act(a b + bias), sums (or null) += out: a [m, k], b [k, n], n <= W <= 2 n.
template <typename T, int W>
void narrow_product(int64_t m, int64_t n, int64_t k, const T* a, const T* b, const T* bias,
                    T lowest, T* out, double* sums) {
  using V = Vec<T, W>;
  constexpr int kRows = 8;
  V factors[kNarrowDepth];
  for (int64_t p = 0; p < k; ++p) {
    factors[p] = load_row<T, W>(b + p * n, n);
  }
  const V shift = bias == nullptr ? V{} : load_row<T, W>(bias, n);
  const NarrowLayer<T, W> layer = {n, k, factors, shift, lowest};
  NarrowSums<T, W> columns = {sums};
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) {
    narrow_tile<T, W, kRows>(layer, a + i * k, out + i * n, m - 1 - i, &columns.total);
    if ((i + kRows) % kColumnRows == 0) {
      columns.flush(n);
    }
  }
  for (; i < m; ++i) {
    narrow_tile<T, W, 1>(layer, a + i * k, out + i * n, m - 1 - i, &columns.total);
  }
  columns.flush(n);
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

// Calls run with the narrowest vector for rows of n; false where n is 1 or fills a whole one.
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
