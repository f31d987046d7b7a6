// Small dense products on blocks that are in cache already. No include guard: see each_isa.h.
//
// A tile of C stays in registers while k passes by; nothing is packed. Columns that are no multiple
// of the vector end in a vector that overlaps the one before it, in the same tile: both are read
// before either is written, so the columns they share get the same sum twice. Every element adds
// its k products in order, whatever the tiling.

// Accumulators are MR x NV vectors: as many as the registers hold beside the operands.
constexpr int kGemmVectors = ABKD_VECTOR_BYTES >= 64 ? 4 : 2;
template <int NV>
constexpr int kGemmRows = ABKD_VECTOR_BYTES >= 64 ? (NV == 4   ? 6
                                                     : NV == 3 ? 8
                                                     : NV == 2 ? 12
                                                               : 16)
                                                  : (NV == 2 ? 5 : 8);

template <typename T>
struct GemmOperands {
  int64_t k;
  const T* a;  // A(i, p) = a[i * a_row + p * a_col]
  int64_t a_row;
  int64_t a_col;
  const T* b;  // B(p, j) = b[p * ldb + j]
  int64_t ldb;
  T* c;  // C(i, j) = c[i * ldc + j]
  int64_t ldc;
  bool accumulate;
};

// Rows [i, i + MR), columns [j, j + last + W): NV vectors, the last of them at j + last.
template <typename T, int W, int MR, int NV>
inline void gemm_tile(const GemmOperands<T>& op, int64_t i, int64_t j, int64_t last) {
  using V = Vec<T, W>;
  V acc[MR][NV];
  T* c = op.c + i * op.ldc + j;
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV; ++v) {
      const int64_t column = v + 1 < NV ? v * W : last;
      acc[r][v] = op.accumulate ? Load<W>::of(c + r * op.ldc + column) : V{};
    }
  }
  const T* a = op.a + i * op.a_row;
  const T* b = op.b + j;
  for (int64_t p = 0; p < op.k; ++p) {
    V row[NV];
    for (int v = 0; v < NV; ++v) {
      row[v] = Load<W>::of(b + (v + 1 < NV ? v * W : last));
    }
    for (int r = 0; r < MR; ++r) {
      const T factor = a[r * op.a_row];
      for (int v = 0; v < NV; ++v) {
        acc[r][v] += factor * row[v];
      }
    }
    a += op.a_col;
    b += op.ldb;
  }
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV; ++v) {
      Store<W>::to(c + r * op.ldc + (v + 1 < NV ? v * W : last), acc[r][v]);
    }
  }
}

template <typename T, int W, int NV>
void gemm_columns(const GemmOperands<T>& op, int64_t m, int64_t j, int64_t last) {
  constexpr int kRows = kGemmRows<NV>;
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) {
    gemm_tile<T, W, kRows, NV>(op, i, j, last);
  }
  for (; i + 4 <= m; i += 4) {
    gemm_tile<T, W, 4, NV>(op, i, j, last);
  }
  for (; i < m; ++i) {
    gemm_tile<T, W, 1, NV>(op, i, j, last);
  }
}

template <typename T, int W>
void gemm_width(const GemmOperands<T>& op, int64_t m, int64_t n) {
  if constexpr (W > 1) {
    if (n < W) {
      gemm_width<T, W / 2>(op, m, n);
      return;
    }
  }
  int64_t vectors = (n + W - 1) / W;
  const bool overlaps = n % W != 0;
  for (int64_t j = 0; vectors > 0;) {
    int64_t count = vectors < kGemmVectors ? vectors : kGemmVectors;
    if (overlaps && vectors - count == 1) {
      --count;  // the overlapping vector shares a tile with its neighbour
    }
    const int64_t last = vectors == count ? n - W - j : (count - 1) * W;
    switch (count) {
      case 1:
        gemm_columns<T, W, 1>(op, m, j, last);
        break;
      case 2:
        gemm_columns<T, W, 2>(op, m, j, last);
        break;
#if ABKD_VECTOR_BYTES >= 64
      case 3:
        gemm_columns<T, W, 3>(op, m, j, last);
        break;
      default:
        gemm_columns<T, W, 4>(op, m, j, last);
#else
      default:
        break;
#endif
    }
    vectors -= count;
    j += count * W;
  }
}

// C (+)= A B, any m, k >= 0 and n >= 1; k = 0 gives C = 0 unless it accumulates.
template <typename T>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_col, const T* b,
          int64_t ldb, T* c, int64_t ldc, bool accumulate) {
  const GemmOperands<T> op = {k, a, a_row, a_col, b, ldb, c, ldc, accumulate};
  gemm_width<T, ABKD_VECTOR_BYTES / sizeof(T)>(op, m, n);
}
