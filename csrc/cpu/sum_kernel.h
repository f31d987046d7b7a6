// Sum and mean over the edges of a row. No include guard: see each_isa.h.
//
// A tile of the row, up to kTile vectors, stays in registers while the row's edges pass by: in
// order, or a tile of one vector in two or four sums. Widths that are no multiple of the vector end
// in a vector that overlaps the one before it: the same sums are computed twice, and no lane is
// masked. A row of more than kChunk edges is the sum of the sums of its chunks, so that threads can
// share it without changing a bit.

constexpr int kChunkTile = 4;
constexpr int64_t kOrdered = 256;  // rows that are taken by degree at a time

// Columns of a segment reduction: edge e reads row e. Its row pointers are int64.
struct Arange {
  int64_t first;
  int64_t operator[](int64_t e) const { return first + e; }
};

// What the index dtype I stands for: row pointers, column arrays, edge ids.
template <typename I>
struct Index {
  using Id = I;
  using Columns = const I*;
  static constexpr bool kWeights = true;
  static Columns columns(const Csr& csr, int64_t first) {
    return static_cast<const I*>(csr.col) + first;
  }
};
template <>
struct Index<Arange> {
  using Id = int64_t;
  using Columns = Arange;
  static constexpr bool kWeights = false;
  static Columns columns(const Csr&, int64_t first) { return {first}; }
};
template <typename I>
using Id = typename Index<I>::Id;

// Consecutive edges, and the features of the sources from the tile's first on.
template <typename T, typename I>
struct Edges {
  typename Index<I>::Columns col;
  const Acc<T>* value;  // or null
  int64_t count;
  int64_t ahead;  // prefetch the source of the edge so many edges on; 0: none
  const T* x;
  int64_t width;
};

// Edges [first, stop), features from `start` on.
template <typename T, typename I>
inline Edges<T, I> edges_of(const SpmmArgs& args, int64_t first, int64_t stop, int64_t start) {
  const Acc<T>* value = static_cast<const Acc<T>*>(args.value);
  return {Index<I>::columns(args.csr, first),
          value == nullptr ? nullptr : value + first,
          stop - first,
          stop + args.schedule.ahead <= args.schedule.edges ? args.schedule.ahead : 0,
          static_cast<const T*>(args.x) + start,
          args.width};
}

// acc[k] += the edges' sum in N vectors of features, the last of them at `last`.
template <typename T, typename I, int W, int N, bool WEIGHTED>
inline void add_edges(const Edges<T, I>& edges, int64_t last, Vec<Acc<T>, W>* acc) {
  using V = Vec<Acc<T>, W>;
  for (int64_t e = 0; e < edges.count; ++e) {
    if (edges.ahead != 0) {
      const int64_t coming = edges.col[e + edges.ahead];
      prefetch_tile<T, W, N>(edges.x + coming * edges.width);
    }
    const T* source = edges.x + static_cast<int64_t>(edges.col[e]) * edges.width;
    for (int k = 0; k < N; ++k) {
      const V v = Load<W>::of(source + (k + 1 < N ? k * W : last));
      acc[k] += WEIGHTED ? edges.value[e] * v : v;
    }
  }
}

// The same for one vector, two edges at a time into two sums: alone, additions would wait for each
// other. An odd last edge is joined by zeros, which costs less than a branch that is often
// mispredicted.
template <typename T, typename I, int W, bool WEIGHTED>
inline Vec<Acc<T>, W> pair_sum(const Edges<T, I>& edges) {
  alignas(64) static const T kZeros[W] = {};
  Vec<Acc<T>, W> even = {};
  Vec<Acc<T>, W> odd = {};
  for (int64_t e = 0; e < edges.count; e += 2) {
    const bool both = e + 1 < edges.count;
    const int64_t next = both ? e + 1 : e;
    const T* first = edges.x + static_cast<int64_t>(edges.col[e]) * edges.width;
    const T* second = edges.x + static_cast<int64_t>(edges.col[next]) * edges.width;
    const auto a = Load<W>::of(first);
    const auto b = Load<W>::of(both ? second : kZeros);
    even += WEIGHTED ? edges.value[e] * a : a;
    odd += WEIGHTED ? (both ? edges.value[next] : 0) * b : b;
  }
  return even + odd;
}

// The same, four at a time, for rows by degree: the end of their loops is foreseen.
template <typename T, typename I, int W, bool WEIGHTED>
inline Vec<Acc<T>, W> four_sums(const Edges<T, I>& edges) {
  using V = Vec<Acc<T>, W>;
  V sums[4] = {};
  const auto add = [&](int64_t e, V* sum) {
    const V v = Load<W>::of(edges.x + static_cast<int64_t>(edges.col[e]) * edges.width);
    *sum += WEIGHTED ? edges.value[e] * v : v;
  };
  int64_t e = 0;
  for (; e + 4 <= edges.count; e += 4) {
    for (int k = 0; k < 4; ++k) {
      add(e + k, &sums[k]);
    }
  }
  for (; e < edges.count; ++e) {
    add(e, &sums[0]);
  }
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// The edges' sum in one vector, as the schedule has it.
template <typename T, typename I, int W, bool WEIGHTED>
inline Vec<Acc<T>, W> vector_sum(const SumSchedule& schedule, const Edges<T, I>& edges) {
  if (schedule.pairs && schedule.ahead == 0) {
    return schedule.by_degree ? four_sums<T, I, W, WEIGHTED>(edges)
                              : pair_sum<T, I, W, WEIGHTED>(edges);
  }
  Vec<Acc<T>, W> sum[1] = {};
  add_edges<T, I, W, 1, WEIGHTED>(edges, 0, sum);
  return sum[0];
}

template <typename T>
inline Acc<T> divisor_of(const SpmmArgs& args, int64_t degree) {
  return args.mean && degree > 1 ? static_cast<Acc<T>>(degree) : 1;
}

// -- rows that threads may share -----------------------------------------------------------

template <typename T, typename I, int W, int N, bool WEIGHTED>
void chunk_tile(const Edges<T, I>& edges, int64_t last, Acc<T>* sums) {
  Vec<Acc<T>, W> acc[N] = {};
  add_edges<T, I, W, N, WEIGHTED>(edges, last, acc);
  for (int k = 0; k < N; ++k) {
    Store<W>::to(sums + (k + 1 < N ? k * W : last), acc[k]);
  }
}

// sums[f] = the sum of edges [first, stop) in `count` >= W features from `start` on.
template <typename T, typename I, int W, bool WEIGHTED>
__attribute__((noinline)) void chunk_sums(const SpmmArgs& args, int64_t first, int64_t stop,
                                          int64_t start, int64_t count, Acc<T>* sums) {
  for (int64_t f = 0; f < count;) {
    const int64_t left = count - f;
    if (left > (kChunkTile - 1) * W) {
      const int64_t features = left < kChunkTile * W ? left : kChunkTile * W;
      const Edges<T, I> edges = edges_of<T, I>(args, first, stop, start + f);
      chunk_tile<T, I, W, kChunkTile, WEIGHTED>(edges, features - W, sums + f);
      f += features;
    } else {
      const int64_t at = left < W ? count - W : f;
      const Edges<T, I> edges = edges_of<T, I>(args, first, stop, start + at);
      chunk_tile<T, I, W, 1, WEIGHTED>(edges, 0, sums + at);
      f = at + W;
    }
  }
}

template <typename T>
void add_row(Acc<T>* total, const Acc<T>* sums, int64_t count) {
  for (int64_t f = 0; f < count; ++f) {
    total[f] += sums[f];
  }
}

template <typename T>
void store_row(const SpmmArgs& args, const Acc<T>* total, int64_t degree, int64_t count, T* out) {
  const Acc<T> divisor = divisor_of<T>(args, degree);
  for (int64_t f = 0; f < count; ++f) {
    Store<1>::to(out + f, Vec<Acc<T>, 1>{divisor == 1 ? total[f] : total[f] / divisor});
  }
}

// A row of several chunks, in one thread; `count` features from `start` on, at most a tile.
template <typename T, typename I, int W, bool WEIGHTED>
__attribute__((noinline)) void long_row(const SpmmArgs& args, int64_t first, int64_t stop,
                                        int64_t start, int64_t count, T* out) {
  Acc<T> total[kTile * W];
  Acc<T> sums[kTile * W];
  chunk_sums<T, I, W, WEIGHTED>(args, first, first + kChunk, start, count, total);
  for (int64_t e = first + kChunk; e < stop; e += kChunk) {
    const int64_t end = e + kChunk < stop ? e + kChunk : stop;
    chunk_sums<T, I, W, WEIGHTED>(args, e, end, start, count, sums);
    add_row<T>(total, sums, count);
  }
  store_row<T>(args, total, stop - first, count, out);
}

// -- whole rows ----------------------------------------------------------------------------

// Row i, features [start, start + last + W): N vectors, the last of them at `last`.
template <typename T, typename I, int W, int N, bool WEIGHTED>
inline void sum_tile(const SpmmArgs& args, int64_t i, int64_t start, int64_t last) {
  using V = Vec<Acc<T>, W>;
  const Id<I>* rowptr = static_cast<const Id<I>*>(args.csr.rowptr);
  const int64_t first = rowptr[i];
  const int64_t degree = rowptr[i + 1] - first;
  T* row = static_cast<T*>(args.out) + i * args.width + start;
  if (degree > kChunk) {
    long_row<T, I, W, WEIGHTED>(args, first, first + degree, start, last + W, row);
    return;
  }
  const Edges<T, I> edges = edges_of<T, I>(args, first, first + degree, start);
  V acc[N] = {};
  if (N == 1) {
    acc[0] = vector_sum<T, I, W, WEIGHTED>(args.schedule, edges);
  } else {
    add_edges<T, I, W, N, WEIGHTED>(edges, last, acc);
  }
  const Acc<T> divisor = divisor_of<T>(args, degree);
  for (int k = 0; k < N; ++k) {
    const V v = divisor == 1 ? acc[k] : acc[k] / divisor;
    Store<W>::to(row + (k + 1 < N ? k * W : last), v);
  }
}

// order[0..count) = the rows of [begin, begin + count) by degree, as offsets from `begin`. Degrees
// of kLongest and more count as one. Four parts of the rows are counted and placed side by side:
// rows of one degree in a row would wait for each other's slot.
template <typename Id>
inline void order_rows(const Id* rowptr, int64_t begin, int64_t count, uint8_t* order) {
  constexpr int kLongest = 16;
  constexpr int kParts = 4;
  uint8_t degrees[kOrdered];
  for (int64_t r = 0; r < count; ++r) {
    const int64_t degree = rowptr[begin + r + 1] - rowptr[begin + r];
    degrees[r] = static_cast<uint8_t>(degree < kLongest ? degree : kLongest);
  }
  uint16_t slot[kParts][kLongest + 1] = {};
  const int64_t part = count / kParts;
  const auto each_row = [&](const auto& visit) {
    for (int64_t r = 0; r < part; ++r) {
      for (int p = 0; p < kParts; ++p) {
        visit(p * part + r, &slot[p][degrees[p * part + r]]);
      }
    }
    for (int64_t r = kParts * part; r < count; ++r) {
      visit(r, &slot[kParts - 1][degrees[r]]);
    }
  };
  each_row([](int64_t, uint16_t* found) { ++*found; });
  uint16_t next = 0;
  for (int d = 0; d <= kLongest; ++d) {
    for (int p = 0; p < kParts; ++p) {
      const uint16_t found = slot[p][d];
      slot[p][d] = next;
      next = static_cast<uint16_t>(next + found);
    }
  }
  each_row([&](int64_t r, uint16_t* at) { order[(*at)++] = static_cast<uint8_t>(r); });
}

// visit(i) for rows [begin, end) in blocks that are taken by degree: where rows are short and x is
// near, the mispredicted end of a row's loop costs as much as its sum.
template <typename Id, typename Visit>
inline void visit_by_degree(const Id* rowptr, int64_t begin, int64_t end, const Visit& visit) {
  uint8_t order[kOrdered];
  for (int64_t i = begin; i < end; i += kOrdered) {
    const int64_t count = end - i < kOrdered ? end - i : kOrdered;
    order_rows(rowptr, i, count, order);
    for (int64_t r = 0; r < count; ++r) {
      visit(i + order[r]);
    }
  }
}

// Rows [begin, end), N vectors each.
template <typename T, typename I, int W, int N, bool WEIGHTED>
void sum_tiles(const SpmmArgs& args, int64_t begin, int64_t end, int64_t start, int64_t last) {
  if (N == 1 && args.schedule.by_degree) {
    visit_by_degree(static_cast<const Id<I>*>(args.csr.rowptr), begin, end,
                    [&](int64_t i) { sum_tile<T, I, W, 1, WEIGHTED>(args, i, start, 0); });
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    sum_tile<T, I, W, N, WEIGHTED>(args, i, start, last);
  }
}

template <typename T, typename I, int W>
struct SumRows {
  static_assert(kTile >= 4 && kSlice >= 4 * W * static_cast<int64_t>(sizeof(T)),
                "of several vectors none is alone in a tile, whose sums take no `last`");

  static void run(const SpmmArgs& args, int64_t begin, int64_t end) {
    const int64_t vectors = (args.width + W - 1) / W;
    const int64_t slice = kSlice / (W * static_cast<int64_t>(sizeof(T)));
    const int64_t most = args.schedule.slices && slice < kTile ? slice : kTile;
    const int64_t tiles = (vectors + most - 1) / most;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = vectors * tile / tiles;
      const int64_t count = vectors * (tile + 1) / tiles - first;
      const int64_t stop = first + count < vectors ? (first + count) * W : args.width;
      const int64_t last = stop - W - first * W;
      const bool weighted = Index<I>::kWeights && args.value != nullptr;
      const Body body = weighted ? body_of<Index<I>::kWeights>(count) : body_of<false>(count);
      body(args, begin, end, first * W, last);
    }
  }

  using Body = void (*)(const SpmmArgs&, int64_t, int64_t, int64_t, int64_t);

  // Vectors narrower than the widest serve widths of one or two of them only.
  template <bool WEIGHTED>
  static Body body_of(int64_t count) {
    if constexpr (W < kLanes<T>) {
      return count == 1 ? sum_tiles<T, I, W, 1, WEIGHTED> : sum_tiles<T, I, W, 2, WEIGHTED>;
    } else {
      constexpr Body kBodies[] = {
          sum_tiles<T, I, W, 1, WEIGHTED>,  sum_tiles<T, I, W, 2, WEIGHTED>,
          sum_tiles<T, I, W, 3, WEIGHTED>,  sum_tiles<T, I, W, 4, WEIGHTED>,
          sum_tiles<T, I, W, 5, WEIGHTED>,  sum_tiles<T, I, W, 6, WEIGHTED>,
          sum_tiles<T, I, W, 7, WEIGHTED>,  sum_tiles<T, I, W, 8, WEIGHTED>,
#if ABKD_VECTOR_BYTES >= 64
          sum_tiles<T, I, W, 9, WEIGHTED>,  sum_tiles<T, I, W, 10, WEIGHTED>,
          sum_tiles<T, I, W, 11, WEIGHTED>, sum_tiles<T, I, W, 12, WEIGHTED>,
          sum_tiles<T, I, W, 13, WEIGHTED>, sum_tiles<T, I, W, 14, WEIGHTED>,
          sum_tiles<T, I, W, 15, WEIGHTED>, sum_tiles<T, I, W, 16, WEIGHTED>,
#endif
      };
      return kBodies[count - 1];
    }
  }
};

// Chunks of one row for several threads, [args.width] sums each; then their sum in order.
template <typename T, typename I, int W>
struct SumChunks {
  static void run(const SpmmArgs& args, int64_t first, int64_t stop, void* sums) {
    Acc<T>* out = static_cast<Acc<T>*>(sums);
    if (Index<I>::kWeights && args.value != nullptr) {
      chunk_sums<T, I, W, Index<I>::kWeights>(args, first, stop, 0, args.width, out);
    } else {
      chunk_sums<T, I, W, false>(args, first, stop, 0, args.width, out);
    }
  }
};

template <typename T, typename I>
void add_chunks(const SpmmArgs& args, int64_t row, void* sums, int64_t chunks) {
  const Id<I>* rowptr = static_cast<const Id<I>*>(args.csr.rowptr);
  Acc<T>* total = static_cast<Acc<T>*>(sums);
  for (int64_t c = 1; c < chunks; ++c) {
    for (int64_t f = 0; f < args.width; ++f) {
      total[f] += total[c * args.width + f];
    }
  }
  T* out = static_cast<T*>(args.out) + row * args.width;
  store_row<T>(args, total, rowptr[row + 1] - rowptr[row], args.width, out);
}
