// What the passes of edge attention share. No include guard: see each_isa.h.
//
// Rows go by in blocks of whole rows: scores, their exponentials, the mask, then sums of features.
// A row is never cut, so that nothing is kept between blocks.

// One thread's space; attention_space() says how much it is.
template <typename A>
struct AttentionSpace {
  int64_t* node;   // [edges + kAttentionPad]
  uint32_t* bits;  // [edges, heads]
  A* edge[3];      // [edges, heads] each
  A* row[3];       // [heads, width] each
  A* sums;         // [kAttentionRows, heads]
  A* dots;         // [3, heads]
  double* exact;   // [2, heads]

  AttentionSpace(void* memory, int64_t edges, int64_t heads, int64_t width) {
    node = static_cast<int64_t*>(memory);
    exact = reinterpret_cast<double*>(node + edges + kAttentionPad);
    A* at = reinterpret_cast<A*>(exact + 2 * heads);
    for (A*& part : edge) {
      part = at;
      at += edges * heads + kAttentionPad;
    }
    for (A*& part : row) {
      part = at;
      at += heads * width;
    }
    sums = at;
    dots = sums + kAttentionRows * heads;
    bits = reinterpret_cast<uint32_t*>(dots + 3 * heads);
  }
};

// Whole rows [row, stop) whose edges [first, last) fill a block; offset[k] = where row + k begins.
struct AttentionBlock {
  int64_t row;
  int64_t stop;
  int64_t first;
  int64_t last;
  int64_t offset[kAttentionRows + 1];

  int64_t begin(int64_t i) const { return offset[i - row]; }
  int64_t count(int64_t i) const { return offset[i - row + 1] - offset[i - row]; }
  int64_t edges() const { return last - first; }
};

// Rows from `row` on, the neighbours of their edges, and some after them to prefetch.
template <typename I>
__attribute__((noinline)) void load_block(const AttentionPass& pass, int64_t row, int64_t end,
                                          AttentionBlock* block, int64_t* node) {
  const I* rowptr = static_cast<const I*>(pass.csr.rowptr) + row;
  const int64_t most = end - row < kAttentionRows ? end - row : kAttentionRows;
  const int64_t first = rowptr[0];
  int64_t rows = 1;
  block->offset[0] = 0;
  block->offset[1] = rowptr[1] - first;
  while (rows < most && rowptr[rows + 1] - first <= pass.block) {
    ++rows;
    block->offset[rows] = rowptr[rows] - first;
  }
  block->row = row;
  block->stop = row + rows;
  block->first = first;
  block->last = rowptr[rows];
  const I* col = static_cast<const I*>(pass.csr.col) + first;
  const int64_t known = pass.edges - first;
  const int64_t wanted = block->edges() + pass.ahead;
  for (int64_t e = 0; e < wanted; ++e) {
    node[e] = e < known ? col[e] : 0;
  }
}

inline void next_block(const AttentionPass& pass, int64_t row, int64_t end, AttentionBlock* block,
                       int64_t* node) {
  pass.csr.wide ? load_block<int64_t>(pass, row, end, block, node)
                : load_block<int32_t>(pass, row, end, block, node);
}

template <typename V, typename A>
inline V leaky(V v, A slope) {
  return v > 0 ? v : slope * v;
}

// bits[e, head] = the random word of element (edge[e], head), as ops.dropout counts elements.
inline void edge_words(const DropoutMask& mask, const int64_t* edge, int64_t count, int64_t heads,
                       uint32_t* bits) {
  constexpr int kQueue = kPhiloxWords / 4;
  uint64_t counters[kQueue] = {};
  int64_t target[kQueue];  // in bits, of the counter's first word
  int64_t from[kQueue];    // the edge's part of bits
  uint32_t words[kPhiloxWords];
  int queued = 0;
  const auto flush = [&]() {
    philox_words_of(mask, counters, words);
    for (int k = 0; k < queued; ++k) {
      for (int w = 0; w < 4; ++w) {
        const int64_t at = target[k] + w;
        if (at >= from[k] && at < from[k] + heads) {
          bits[at] = words[4 * k + w];
        }
      }
    }
    queued = 0;
  };
  for (int64_t e = 0; e < count; ++e) {
    const int64_t element = edge[e] * heads;
    for (int64_t c = element / 4; c * 4 < element + heads; ++c) {
      counters[queued] = c;
      target[queued] = e * heads + c * 4 - element;
      from[queued] = e * heads;
      if (++queued == kQueue) {
        flush();
      }
    }
  }
  flush();
}

// p[i] = scale * p[i] where its word says that it is kept, else 0.
template <typename A>
inline void drop_by_words(const DropoutMask& mask, const uint32_t* bits, int64_t count, A* p) {
  constexpr int W = kLanes<A>;
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    drop<A, W>(mask, bits + i, p + i, p + i);
  }
  for (; i < count; ++i) {
    drop<A, 1>(mask, bits + i, p + i, p + i);
  }
}

// Exponentials of a block, whose memory is padded to whole vectors.
template <typename A>
inline void exp_padded(A* p, int64_t count) {
  const int64_t padded = (count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
  for (int64_t i = count; i < padded; ++i) {
    p[i] = 0;
  }
  exp_all(p, sizeof(A) == sizeof(float) ? padded : count);
}

// p = score - max of the row; stats = max, then 1 / the sum of exponentials, which comes later.
template <typename A>
__attribute__((noinline)) void softmax_begin(int64_t count, int64_t heads, A* p, A* stats) {
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    Vec<A, W> most = Vec<A, W>{} - static_cast<A>(__builtin_inf());
    for (int64_t e = 0; e < count; ++e) {
      const Vec<A, W> v = Load<W>::of(p + e * heads + h);
      most = v > most ? v : most;
    }
    most = count == 0 ? Vec<A, W>{} : most;
    for (int64_t e = 0; e < count; ++e) {
      Store<W>::to(p + e * heads + h, Load<W>::of(p + e * heads + h) - most);
    }
    Store<W>::to(stats + h, most);
  });
}

// The gradient of a score is a small difference of large sums, which are taken in parts of so many
// edges.
constexpr int64_t kSumPart = 16;

// Sum of term(e) over a row's edges, in parts.
template <typename A, int W, typename Term>
inline Vec<A, W> sum_in_parts(int64_t count, const Term& term) {
  Vec<A, W> total = {};
  for (int64_t first = 0; first < count; first += kSumPart) {
    const int64_t stop = count - first < kSumPart ? count : first + kSumPart;
    Vec<A, W> part = {};
    for (int64_t e = first; e < stop; ++e) {
      part += term(e);
    }
    total += part;
  }
  return total;
}

template <typename A>
__attribute__((noinline)) void softmax_end(int64_t count, int64_t heads, const A* p, A* stats) {
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> sum =
        sum_in_parts<A, W>(count, [&](int64_t e) { return Load<W>::of(p + e * heads + h); });
    Store<W>::to(stats + heads + h, count == 0 ? Vec<A, W>{} : 1 / sum);
  });
}

// out = the weighted sums of a block's rows.
template <typename T>
void sum_features(const AttentionPass& pass, const AttentionBlock& block, const int64_t* node,
                  const Acc<T>* p) {
  const int64_t heads = pass.heads;
  const int64_t row = heads * pass.width;
  for (int64_t i = block.row; i < block.stop; ++i) {
    const int64_t first = block.begin(i);
    T* out = static_cast<T*>(pass.out) + i * row;
    const Acc<T>* stats = static_cast<const Acc<T>*>(pass.stats) + i * 2 * heads;
    const WeightedSums<T, T, 1> sums = {
        static_cast<const T*>(pass.x), node + first, block.count(i), pass.ahead, heads, pass.width,
        {p + first * heads},           {out},        stats + heads};
    sums.run();
  }
}
