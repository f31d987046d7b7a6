// Sums over blocks of projected nodes, [rows, r] with r a multiple of all vectors, and row-wise
// updates of them. No include guard: see each_isa.h.
//
// At most kSumRows values are summed in the compute dtype, in every lane; the rest in float64.

constexpr int64_t kSumRows = 64;
constexpr int kDotTile = ABKD_VECTOR_BYTES >= 64 ? 4 : 2;

// out[i, j] += <x_i, y_j> over `length` elements, a multiple of W.
template <typename T, int W, int MI, int MJ>
void dot_tile(const T* x, const T* y, int64_t ld, int64_t length, double* out, int64_t ldo) {
  using V = Vec<T, W>;
  for (int64_t start = 0; start < length; start += kSumRows * W) {
    const int64_t rest = length - start;
    const int64_t stop = start + (rest < kSumRows * W ? rest : kSumRows * W);
    V sum[MI][MJ] = {};
    for (int64_t e = start; e < stop; e += W) {
      V right[MJ];
      for (int j = 0; j < MJ; ++j) {
        right[j] = Load<W>::of(y + j * ld + e);
      }
      for (int i = 0; i < MI; ++i) {
        const V left = Load<W>::of(x + i * ld + e);
        for (int j = 0; j < MJ; ++j) {
          sum[i][j] += left * right[j];
        }
      }
    }
    for (int i = 0; i < MI; ++i) {
      for (int j = 0; j < MJ; ++j) {
        out[i * ldo + j] += lane_sum<W>(sum[i][j]);
      }
    }
  }
}

template <typename T, int MI>
void dot_columns(const T* x, const T* y, int64_t n, int64_t ld, int64_t length, double* out) {
  int64_t j = 0;
  for (; j + kDotTile <= n; j += kDotTile) {
    dot_tile<T, kLanes<T>, MI, kDotTile>(x, y + j * ld, ld, length, out + j, n);
  }
  for (; j < n; ++j) {
    dot_tile<T, kLanes<T>, MI, 1>(x, y + j * ld, ld, length, out + j, n);
  }
}

// out [m, n] += X Y^T over flattened blocks `ld` apart.
template <typename T>
void add_dots(const T* x, int64_t m, const T* y, int64_t n, int64_t ld, int64_t length,
              double* out) {
  int64_t i = 0;
  for (; i + kDotTile <= m; i += kDotTile) {
    dot_columns<T, kDotTile>(x + i * ld, y, n, ld, length, out + i * n);
  }
  for (; i < m; ++i) {
    dot_columns<T, 1>(x + i * ld, y, n, ld, length, out + i * n);
  }
}

// sum [r] += rows of x times root[v], *square += |x|^2.
template <typename T>
void add_sums(const T* x, const T* root, int64_t count, int64_t r, double* sum, double* square) {
  constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  for (int64_t start = 0; start < count; start += kSumRows) {
    const int64_t stop = count - start < kSumRows ? count : start + kSumRows;
    for (int64_t q = 0; q < r; q += W) {
      V total = {};
      V squares = {};
      for (int64_t v = start; v < stop; ++v) {
        const V value = Load<W>::of(x + v * r + q);
        total += root == nullptr ? value : root[v] * value;
        squares += value * value;
      }
      T lanes[W];
      Store<W>::to(lanes, total);
      add_to(sum + q, lanes, W, false);
      *square += lane_sum<W>(squares);
    }
  }
}

// Row v times root[v].
template <typename T>
void scale_rows(const T* root, int64_t count, int64_t ld, T* x) {
  for (int64_t v = 0; root != nullptr && v < count; ++v) {
    for (int64_t i = 0; i < ld; ++i) {
      x[v * ld + i] *= root[v];
    }
  }
}

// out = factor x + root_v row, [count, r]; out may be x.
template <typename T>
void combine_rows(const T* x, T factor, const T* row, const T* root, int64_t count, int64_t r,
                  T* out) {
  for (int64_t v = 0; v < count; ++v) {
    const T weight = root == nullptr ? 1 : root[v];
    for (int64_t i = 0; i < r; ++i) {
      out[v * r + i] = factor * x[v * r + i] + weight * row[i];
    }
  }
}
