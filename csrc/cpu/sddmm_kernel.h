// The product of a dense pair at the edges of a graph. No include guard: part of spmm_kernel.h.

template <typename T, typename I, int W>
struct SddmmRows {
  using V = Vec<Acc<T>, W>;
  using M = Vec<Int<Acc<T>>, W>;

  // Edges [first, stop).
  static void run(const SddmmArgs& args, int64_t first, int64_t stop) {
    const I* rowptr = static_cast<const I*>(args.csr.rowptr);
    const I* col = static_cast<const I*>(args.csr.col);
    const T* b = static_cast<const T*>(args.b);
    Acc<T>* out = static_cast<Acc<T>*>(args.out);
    const int64_t width = args.width;
    // The last vector overlaps the one before it; only its new lanes count.
    M fresh = {};
    for (int lane = 0; lane < W; ++lane) {
      fresh[lane] = lane >= W - width % W ? -1 : 0;
    }
    const int64_t line = 64 / sizeof(T);
    int64_t i = row_of(rowptr, args.rows, first);
    for (int64_t e = first; e < stop; ++e) {
      while (rowptr[i + 1] <= e) {
        ++i;
      }
      if (args.ahead != 0 && e + args.ahead < stop) {
        const T* coming = b + static_cast<int64_t>(col[e + args.ahead]) * width;
        for (int64_t f = 0; f < width; f += line) {
          __builtin_prefetch(coming + f);
        }
      }
      const T* a = static_cast<const T*>(args.a) + i * width;
      out[e] = dot(a, b + static_cast<int64_t>(col[e]) * width, width, fresh);
    }
  }

  // The row that holds an edge.
  static int64_t row_of(const I* rowptr, int64_t rows, int64_t edge) {
    int64_t low = 0;
    int64_t high = rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (rowptr[middle + 1] <= edge) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
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
