// The node pass of layer_pair's moment form. No include guard: see simd_begin.h.
//
// An element of the teacher, once in a register, feeds both products: the row of C = t~^T h~ that
// belongs to its column, and the row of t K that belongs to its node. Tiles of kTileRows nodes by a
// chunk of columns go through the first-level cache, so that the teacher is read from memory once;
// the chunks of C and K stay there over all nodes of a block. C is summed in the compute dtype
// within a block, in float64 over blocks.

constexpr int64_t kMomentRows = 240;  // of a block
constexpr int64_t kTileRows = 12;     // a multiple of all kPairRows
constexpr int64_t kSecondRows = 24;   // of a step of the states' second moments
constexpr int64_t kChunkBytes = 1 << 14;
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
  T* t;             // [kTileRows, columns]
  T* c;             // [columns, ld]
  double* left;     // [kSecondRows, ld]
  double* right;

  MomentBuffers(const MomentArgs& args, Scratch& scratch) : ld(padded(args.set.student_width)) {
    columns = kChunkBytes / static_cast<int64_t>(sizeof(T)) / ld;
    columns = columns < 16 ? 16 : columns;
    h = scratch.take<T>(kMomentRows * ld);
    wh = args.set.weight == nullptr ? h : scratch.take<T>(kMomentRows * ld);
    dh = scratch.take<T>(kMomentRows * ld);
    t = scratch.take<T>(kTileRows * columns);
    c = scratch.take<T>(columns * ld);
    left = scratch.take<double>(kSecondRows * ld);
    right = scratch.take<double>(kSecondRows * ld);
  }
};

// c[q] += sum_r t[r, q] h[r], dh[r] += sum_q t[r, q] k[q]; q runs over `columns`.
template <typename T, int W, int NV, bool STUDENT>
void pair_tile(const T* t, int64_t ldt, int64_t columns, const T* h, const T* k, T* c, T* dh,
               int64_t ld) {
  using V = Vec<T, W>;
  constexpr int kRows = kPairRows<NV>;
  V state[kRows][NV];
  V sum[kRows][NV] = {};
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < NV; ++v) {
      state[r][v] = Load<W>::of(h + r * ld + v * W);
    }
  }
  for (int64_t q = 0; q < columns; ++q) {
    V row[NV];
    V total[NV];
    for (int v = 0; v < NV; ++v) {
      total[v] = Load<W>::of(c + q * ld + v * W);
      if (STUDENT) {
        row[v] = Load<W>::of(k + q * ld + v * W);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const T factor = t[r * ldt + q];
      for (int v = 0; v < NV; ++v) {
        total[v] += factor * state[r][v];
        if (STUDENT) {
          sum[r][v] += factor * row[v];
        }
      }
    }
    for (int v = 0; v < NV; ++v) {
      Store<W>::to(c + q * ld + v * W, total[v]);
    }
  }
  for (int r = 0; STUDENT && r < kRows; ++r) {
    for (int v = 0; v < NV; ++v) {
      T* out = dh + r * ld + v * W;
      Store<W>::to(out, Load<W>::of(out) + sum[r][v]);
    }
  }
}

template <typename T, int NV, bool STUDENT>
void pair_rows(const T* t, int64_t ldt, int64_t columns, const T* h, const T* k, T* c, T* dh,
               int64_t ld) {
  for (int64_t r = 0; r < kTileRows; r += kPairRows<NV>) {
    pair_tile<T, kLanes<T>, NV, STUDENT>(t + r * ldt, ldt, columns, h + r * ld, k, c, dh + r * ld,
                                         ld);
  }
}

// All columns of C, kTileRows rows.
template <typename T, bool STUDENT>
void pair_columns(const MomentBuffers<T>& at, int64_t columns, const T* h, const T* k, T* dh) {
  constexpr int64_t kWide = kPairVectors * kLanes<T>;
  for (int64_t j = 0; j < at.ld; j += kWide) {
    const int64_t vectors = (at.ld - j < kWide ? at.ld - j : kWide) / kLanes<T>;
    const T* k_at = STUDENT ? k + j : nullptr;
    switch (vectors) {
#if ABKD_VECTOR_BYTES >= 64
      case 1:
        pair_rows<T, 1, STUDENT>(at.t, at.columns, columns, h + j, k_at, at.c + j, dh + j, at.ld);
        break;
      case 3:
        pair_rows<T, 3, STUDENT>(at.t, at.columns, columns, h + j, k_at, at.c + j, dh + j, at.ld);
        break;
      case 4:
        pair_rows<T, 4, STUDENT>(at.t, at.columns, columns, h + j, k_at, at.c + j, dh + j, at.ld);
        break;
#endif
      default:
        pair_rows<T, 2, STUDENT>(at.t, at.columns, columns, h + j, k_at, at.c + j, dh + j, at.ld);
    }
  }
}

// The teacher's columns [first, first + columns) for `count` nodes from `row` on, into at.c, at.dh.
template <typename T>
void moment_chunk(const MomentArgs& args, const MomentBuffers<T>& at, int64_t row, int64_t count,
                  int64_t first, int64_t columns) {
  const NodeSet& set = args.set;
  memset(at.c, 0, columns * at.ld * sizeof(T));
  for (int64_t v = 0; v < count; v += kTileRows) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      if (v + r >= count) {
        memset(at.t + r * at.columns, 0, columns * sizeof(T));
        continue;
      }
      const int64_t node = set.node(row + v + r);
      load_row(set.teacher, set.teacher_dtype, node, first, columns, at.t + r * at.columns);
      if (v + r + kTileRows < count) {
        const int64_t next = set.node(row + v + r + kTileRows);
        prefetch_row(set.teacher, set.teacher_dtype, next, first, columns);
      }
    }
    if (args.k == nullptr) {
      pair_columns<T, false>(at, columns, at.wh + v * at.ld, nullptr, at.dh + v * at.ld);
    } else {
      const T* k = static_cast<const T*>(args.k) + first * at.ld;
      pair_columns<T, true>(at, columns, at.wh + v * at.ld, k, at.dh + v * at.ld);
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
      moment_chunk(args, at, row, count, first, columns);
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
