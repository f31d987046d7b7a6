// The node pass of layer_pair's moment form. No include guard: see each_isa.h.
//
// An element of the teacher, once in a register, feeds both products: the row of C = t~^T h~ that
// belongs to its column, and the row of t K that belongs to its node. Tiles of kTileRows nodes by a
// chunk of columns go through the first-level cache, so that the teacher is read from memory once;
// the chunks of C and K stay there over all nodes of a block. C is summed in the compute dtype
// within a block, in float64 over blocks.

constexpr int64_t kMomentRows = 240;      // of a block
constexpr int64_t kTileRows = 12;         // a multiple of all kPairRows
constexpr int64_t kSecondRows = 24;       // of a step of the states' second moments
constexpr int64_t kChunkBytes = 1 << 14;  // of C, and of K
constexpr int64_t kTileStride = 256;
constexpr int64_t kLine = 16;  // columns between prefetches: a cache line of float32
constexpr int kPairVectors = ABKD_VECTOR_BYTES >= 64 ? 4 : 2;
// 2 x rows x vectors registers hold h and t K.
template <int NV>
constexpr int kPairRows = ABKD_VECTOR_BYTES >= 64 ? 12 / NV : 6 / NV;

template <typename T>
struct MomentBuffers {
  int64_t ld;       // padded C
  int64_t columns;  // of a chunk
  T* h;             // [rows, ld] states less their centre
  T* wh;            // times the weights; h itself without
  T* dh;            // [rows, ld]
  T* t;             // [kTileRows, kTileStride]
  T* c;             // [columns, ld]
  double* left;     // [kSecondRows, ld]
  double* right;

  MomentBuffers(const MomentArgs& args, Scratch& scratch) : ld(padded(args.set.student_width)) {
    columns = kChunkBytes / static_cast<int64_t>(sizeof(T)) / ld;
    columns = columns < kLine ? kLine : columns;
    h = scratch.take<T>(kMomentRows * ld);
    wh = args.set.weight == nullptr ? h : scratch.take<T>(kMomentRows * ld);
    dh = scratch.take<T>(kMomentRows * ld);
    t = scratch.take<T>(kTileRows * kTileStride);
    c = scratch.take<T>(columns * ld);
    left = scratch.take<double>(kSecondRows * ld);
    right = scratch.take<double>(kSecondRows * ld);
  }
};

// The rows of the teacher that the next tile will read, asked for while this one is computed.
struct NextTile {
  const char* row[kTileRows];  // first element
  int64_t count;               // of rows; 0 where a row's columns are not neighbours
  int64_t bytes;               // of an element

  NextTile(const NodeSet& set, int64_t begin, int64_t end, int64_t first)
      : count(end - begin < kTileRows ? end - begin : kTileRows),
        bytes(element_size(set.teacher_dtype)) {
    if (set.teacher.column != 1 || first >= set.teacher.width) {
      count = 0;
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t offset = set.node(begin + r) * set.teacher.row + first;
      row[r] = static_cast<const char*>(set.teacher.data) + offset * bytes;
    }
  }

  void prefetch(int64_t column) const {
    for (int64_t r = 0; r < count; ++r) {
      __builtin_prefetch(row[r] + column * bytes, 0, 2);
    }
  }
};

// Operands of a tile, and what comes after it.
template <typename T>
struct PairTile {
  const T* t;  // [kTileRows, kTileStride]
  int64_t columns;
  const T* h;  // [kTileRows, ld]
  const T* k;  // [columns, ld]
  T* c;        // [columns, ld]
  T* dh;       // [kTileRows, ld]
  int64_t ld;
};

// c[q] += sum_r t[r, q] h[r], dh[r] += sum_q t[r, q] k[q] for kPairRows rows; q < columns.
template <typename T, int NV, bool STUDENT>
void pair_rows(const PairTile<T>& op, const NextTile* next) {
  constexpr int W = kLanes<T>;
  constexpr int kRows = kPairRows<NV>;
  using V = Vec<T, W>;
  V state[kRows][NV];
  V sum[kRows][NV] = {};
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < NV; ++v) {
      state[r][v] = Load<W>::of(op.h + r * op.ld + v * W);
    }
  }
  const T* k = op.k;
  T* c = op.c;
  for (int64_t start = 0; start < op.columns; start += kLine) {
    const int64_t stop = op.columns - start < kLine ? op.columns : start + kLine;
    if (next != nullptr) {
      next->prefetch(start);
    }
    for (const T* t = op.t + start; t < op.t + stop; ++t) {
      V total[NV];
      V row[NV];
      for (int v = 0; v < NV; ++v) {
        total[v] = Load<W>::of(c + v * W);
        if (STUDENT) {
          row[v] = Load<W>::of(k + v * W);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        const T factor = t[r * kTileStride];
        for (int v = 0; v < NV; ++v) {
          total[v] += factor * state[r][v];
          if (STUDENT) {
            sum[r][v] += factor * row[v];
          }
        }
      }
      for (int v = 0; v < NV; ++v) {
        Store<W>::to(c + v * W, total[v]);
      }
      c += op.ld;
      k += op.ld;
    }
  }
  for (int r = 0; STUDENT && r < kRows; ++r) {
    for (int v = 0; v < NV; ++v) {
      T* out = op.dh + r * op.ld + v * W;
      Store<W>::to(out, Load<W>::of(out) + sum[r][v]);
    }
  }
}

// All rows of a tile, NV vectors of columns from `first` on.
template <typename T, int NV, bool STUDENT>
void pair_vectors(const PairTile<T>& op, int64_t first, const NextTile* next) {
  for (int64_t r = 0; r < kTileRows; r += kPairRows<NV>) {
    pair_rows<T, NV, STUDENT>({op.t + r * kTileStride, op.columns, op.h + r * op.ld + first,
                               op.k + first, op.c + first, op.dh + r * op.ld + first, op.ld},
                              r == 0 ? next : nullptr);
  }
}

template <typename T, bool STUDENT>
void pair_tile(const PairTile<T>& op, const NextTile& next) {
  constexpr int64_t kWide = kPairVectors * kLanes<T>;
  for (int64_t j = 0; j < op.ld; j += kWide) {
    const NextTile* ahead = j == 0 ? &next : nullptr;
    switch ((op.ld - j < kWide ? op.ld - j : kWide) / kLanes<T>) {
#if ABKD_VECTOR_BYTES >= 64
      case 1:
        pair_vectors<T, 1, STUDENT>(op, j, ahead);
        break;
      case 3:
        pair_vectors<T, 3, STUDENT>(op, j, ahead);
        break;
      case 4:
        pair_vectors<T, 4, STUDENT>(op, j, ahead);
        break;
#endif
      default:
        pair_vectors<T, 2, STUDENT>(op, j, ahead);
    }
  }
}

// The teacher's columns [first, first + columns) for rows [row, row + count) of a group that ends
// at `end`, into at.c and at.dh.
template <typename T>
void moment_chunk(const MomentArgs& args, const MomentBuffers<T>& at, int64_t row, int64_t count,
                  int64_t end, int64_t first, int64_t columns) {
  const NodeSet& set = args.set;
  const T* k = args.k == nullptr ? at.c : static_cast<const T*>(args.k) + first * at.ld;
  memset(at.c, 0, columns * at.ld * sizeof(T));
  for (int64_t v = 0; v < count; v += kTileRows) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      T* t = at.t + r * kTileStride;
      if (v + r < count) {
        load_row(set.teacher, set.teacher_dtype, set.node(row + v + r), first, columns, t);
      } else {
        memset(t, 0, columns * sizeof(T));
      }
    }
    const bool inside = v + kTileRows < count;
    const bool across = first + columns < set.teacher.width;
    const NextTile next(set,
                        inside   ? row + v + kTileRows
                        : across ? row
                                 : row + count,
                        inside || across ? row + count : end,
                        inside   ? first
                        : across ? first + columns
                                 : 0);
    const PairTile<T> op = {at.t, columns, at.wh + v * at.ld, k, at.c, at.dh + v * at.ld, at.ld};
    if (args.k == nullptr) {
      pair_tile<T, false>(op, next);
    } else {
      pair_tile<T, true>(op, next);
    }
  }
}

// Second moments and sum of the weighted states, [C, ld] and [ld], in float64.
template <typename T>
void add_second_moments(const MomentArgs& args, const MomentBuffers<T>& at, int64_t count,
                        double* second, bool first) {
  const int64_t width = args.set.student_width;
  double* sum = second + width * at.ld;
  for (int64_t v = 0; v < count; v += kSecondRows) {
    const int64_t rows = count - v < kSecondRows ? count - v : kSecondRows;
    add_to(at.left, at.wh + v * at.ld, rows * at.ld, true);
    add_to(at.right, at.h + v * at.ld, rows * at.ld, true);
    gemm<double>(width, at.ld, rows, at.left, 1, at.ld, at.right, at.ld, second, at.ld,
                 !first || v > 0);
    for (int64_t r = 0; r < rows; ++r) {
      add_to(sum, at.left + r * at.ld, at.ld, first && v == 0 && r == 0);
    }
  }
}

template <typename T>
void weigh_rows(const NodeSet& set, int64_t row, int64_t count, int64_t ld, const T* in, T* out) {
  const T* weight = static_cast<const T*>(set.weight) + row;
  for (int64_t v = 0; v < count; ++v) {
    for (int64_t i = 0; i < ld; ++i) {
      out[v * ld + i] = weight[v] * in[v * ld + i];
    }
  }
}

// dh = row + h G, before the teacher's part.
template <typename T>
void start_state_gradient(const MomentArgs& args, const MomentBuffers<T>& at, int64_t count) {
  for (int64_t v = 0; v < kMomentRows; ++v) {
    memcpy(at.dh + v * at.ld, args.row, at.ld * sizeof(T));
  }
  gemm<T>(count, at.ld, args.set.student_width, at.h, at.ld, 1, static_cast<const T*>(args.g),
          at.ld, at.dh, at.ld, true);
}

template <typename T>
void store_state_gradient(const MomentArgs& args, const MomentBuffers<T>& at, int64_t row,
                          int64_t count) {
  const int64_t width = args.set.student_width;
  if (args.set.weight != nullptr) {
    weigh_rows(args.set, row, count, at.ld, at.dh, at.dh);
  }
  for (int64_t v = 0; v < count; ++v) {
    T* out = static_cast<T*>(args.dstates) + args.set.node(row + v) * width;
    memcpy(out, at.dh + v * at.ld, width * sizeof(T));
  }
}

template <typename T>
void moment_group(const MomentArgs& args, void* memory, int64_t group) {
  const NodeSet& set = args.set;
  Scratch scratch = {memory, 0};
  const MomentBuffers<T> at(args, scratch);
  double* cross = args.totals + group * args.total_size;
  double* second = cross + set.teacher.width * at.ld;
  const int64_t begin = set.first_row(group);
  const int64_t end = set.first_row(group + 1);
  for (int64_t row = begin; row < end; row += kMomentRows) {
    const int64_t count = end - row < kMomentRows ? end - row : kMomentRows;
    load_states(set, row, count, at.ld, at.h);
    memset(at.h + count * at.ld, 0, (kMomentRows - count) * at.ld * sizeof(T));
    if (set.weight != nullptr) {
      weigh_rows(set, row, count, at.ld, at.h, at.wh);
      memset(at.wh + count * at.ld, 0, (kMomentRows - count) * at.ld * sizeof(T));
    }
    add_second_moments(args, at, count, second, row == begin);
    if (args.k != nullptr) {
      start_state_gradient(args, at, count);
    }
    for (int64_t first = 0; first < set.teacher.width; first += at.columns) {
      const int64_t rest = set.teacher.width - first;
      const int64_t columns = rest < at.columns ? rest : at.columns;
      moment_chunk(args, at, row, count, end, first, columns);
      add_to(cross + first * at.ld, at.c, columns * at.ld, row == begin);
    }
    if (args.k != nullptr) {
      store_state_gradient(args, at, row, count);
    }
  }
}

template <typename T>
int64_t moment_bytes(const MomentArgs& args) {
  Scratch scratch = {nullptr, 0};
  MomentBuffers<T>(args, scratch);
  return scratch.used;
}

inline int64_t moment_scratch(const MomentArgs& args) {
  return args.set.dtype == Dtype::kFloat32 ? moment_bytes<float>(args) : moment_bytes<double>(args);
}

inline void moment(const MomentArgs& args, void* scratch, int64_t group) {
  if (args.set.dtype == Dtype::kFloat32) {
    moment_group<float>(args, scratch, group);
  } else {
    moment_group<double>(args, scratch, group);
  }
}
