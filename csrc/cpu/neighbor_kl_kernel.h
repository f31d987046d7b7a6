// Divergence of neighbourhood softmaxes, one row of edges at a time. No include guard: see
// each_isa.h.

// clang-format off: each file uses the ones before it
#include "simd.h"
#include "exp.h"
#include "fresh_lanes.h"
#include "lane_tree.h"
#include "attention_tiles.h"
// clang-format on

// One thread's space; neighbor_space() says how much it is. Edge arrays have whole vectors.
template <typename T>
struct NeighborSpace {
  int64_t* node;
  T* score;
  T* slope;   // of the score in b, of both roles: the gradient is slope (x_other - [x_own])
  T* other;   // the teacher's score
  T* weight;  // exp(score - max), then the coefficients
  T* target;
  T* row;  // [width]

  NeighborSpace(void* memory, const NeighborPass& pass) {
    const int64_t edges = pass.capacity + kNeighborPad;
    node = static_cast<int64_t*>(memory);
    score = reinterpret_cast<T*>(node + edges);
    slope = score + edges;
    other = slope + edges;
    weight = other + edges;
    target = weight + edges;
    row = target + edges;
  }
};

// -- similarities -----------------------------------------------------------------------------

// b of one row with G others: squared distances, or dot products.
template <typename T, int W, bool DISTANCE, int G>
inline void pair_sums(const T* own, const T* const* others, int64_t width, int64_t fresh, T* b) {
  using V = Vec<T, W>;
  const auto term = [](V x, V y) {
    if constexpr (DISTANCE) {
      const V difference = x - y;
      return difference * difference;
    } else {
      return x * y;
    }
  };
  V sums[G] = {};
  int64_t f = 0;
  for (; f + W <= width; f += W) {
    const V x = Load<W>::of(own + f);
    for (int g = 0; g < G; ++g) {
      sums[g] += term(x, Load<W>::of(others[g] + f));
    }
  }
  if (f < width) {  // a last vector that overlaps the one before it
    const V x = Load<W>::of(own + width - W);
    for (int g = 0; g < G; ++g) {
      sums[g] += only_fresh<T, W>(term(x, Load<W>::of(others[g] + width - W)), fresh);
    }
  }
  for (int g = 0; g < G; ++g) {
    b[g] = LaneSum<T, W>::of(sums[g]);
  }
}

// b of a row's edges; col holds `known` columns from the row's first on.
template <typename T, typename I, int W, bool DISTANCE>
__attribute__((noinline)) void row_sums(const NeighborRows& rows, const T* own, const I* col,
                                        int64_t count, int64_t known, T* b) {
  constexpr int G = 4;
  const T* const x = static_cast<const T*>(rows.x);
  const int64_t width = rows.width;
  const int64_t fresh = width % W;
  const int64_t line = 64 / sizeof(T);
  for (int64_t e = 0; rows.ahead != 0 && e < count && e + rows.ahead < known; ++e) {
    const T* coming = x + static_cast<int64_t>(col[e + rows.ahead]) * width;
    for (int64_t f = 0; f < width; f += line) {
      __builtin_prefetch(coming + f);
    }
  }
  int64_t e = 0;
  const T* others[G];
  for (; e + G <= count; e += G) {
    for (int g = 0; g < G; ++g) {
      others[g] = x + static_cast<int64_t>(col[e + g]) * width;
    }
    pair_sums<T, W, DISTANCE, G>(own, others, width, fresh, b + e);
  }
  for (; e < count; ++e) {
    others[0] = x + static_cast<int64_t>(col[e]) * width;
    pair_sums<T, W, DISTANCE, 1>(own, others, width, fresh, b + e);
  }
}

// The widest vectors that a row holds.
template <typename T, typename I, int W, bool DISTANCE>
inline void row_sums_of(const NeighborRows& rows, const T* own, const I* col, int64_t count,
                        int64_t known, T* b) {
  if constexpr (W > 1) {
    if (rows.width < W) {
      row_sums_of<T, I, W / 2, DISTANCE>(rows, own, col, count, known, b);
      return;
    }
  } else if (rows.width == 0) {
    memset(b, 0, count * sizeof(T));
    return;
  }
  row_sums<T, I, W, DISTANCE>(rows, own, col, count, known, b);
}

template <typename T>
inline int64_t whole_vectors(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// x = exp(x) of values that are not above zero; beyond `count`, up to whole vectors, zeros.
template <typename T>
inline void exp_row(T* x, int64_t count) {
  const int64_t whole = whole_vectors<T>(count);
  for (int64_t e = count; e < whole; ++e) {
    x[e] = 0;
  }
  exp_all(x, sizeof(T) == sizeof(float) ? whole : count);
  for (int64_t e = count; e < whole; ++e) {
    x[e] = 0;
  }
}

// score = the similarities of a row's edges, slope = their slopes; null: not wanted.
template <typename T, typename I>
void similarities(const NeighborPass& pass, const NeighborRows& rows, int64_t i, const I* col,
                  int64_t count, int64_t known, T* score, T* slope) {
  constexpr int W = kLanes<T>;
  const T* own = static_cast<const T*>(rows.x) + i * rows.width;
  if (pass.similarity == Similarity::kPower) {
    row_sums_of<T, I, W, false>(rows, own, col, count, known, score);
    const T offset = static_cast<T>(pass.offset);
    for (int64_t e = 0; e < count; ++e) {
      const T base = score[e] + offset;
      T lower = 1;
      for (int64_t k = 1; k < pass.power; ++k) {
        lower *= base;
      }
      score[e] = lower * base;
      if (slope != nullptr) {
        slope[e] = static_cast<T>(pass.power) * lower;
      }
    }
    return;
  }
  row_sums_of<T, I, W, true>(rows, own, col, count, known, score);
  const bool rbf = pass.similarity == Similarity::kRbf;
  if (rbf) {
    for (int64_t e = 0; e < count; ++e) {
      score[e] *= static_cast<T>(-0.5);
    }
    exp_row(score, count);
  }
  for (int64_t e = 0; slope != nullptr && e < count; ++e) {
    slope[e] = rbf ? score[e] : static_cast<T>(-2);
  }
}

// -- softmax ----------------------------------------------------------------------------------

template <typename T>
struct Softmax {
  T most;
  T log_sum;
  T inverse;  // 1 / the sum
};

// weight = exp(score - max) of a row with edges, zeros up to whole vectors.
template <typename T>
inline Softmax<T> row_softmax(const T* score, int64_t count, T* weight) {
  constexpr int W = kLanes<T>;
  T most = score[0];
  for (int64_t e = 1; e < count; ++e) {
    most = score[e] > most ? score[e] : most;
  }
  for (int64_t e = 0; e < count; ++e) {
    weight[e] = score[e] - most;
  }
  exp_row(weight, count);
  Vec<T, W> sums = {};
  for (int64_t e = 0; e < count; e += W) {
    sums += Load<W>::of(weight + e);
  }
  const T sum = LaneSum<T, W>::of(sums);
  return {most, static_cast<T>(log(sum)), 1 / sum};
}

// -- passes -----------------------------------------------------------------------------------

// dstudent[v] = or += sum_e coefficient[e] (x_e - [distances] x_v).
template <typename T>
void add_gradient(const NeighborPass& pass, const NeighborSpace<T>& space, int64_t v, int64_t count,
                  bool add) {
  const T* x = static_cast<const T*>(pass.student.x);
  const int64_t width = pass.student.width;
  const WeightedSums<T, T, 1> sums = {x, space.node, count,          0,
                                      1, width,      {space.weight}, {space.row}};
  sums.run();
  T total = 0;
  if (pass.similarity != Similarity::kPower) {
    constexpr int W = kLanes<T>;
    for (int64_t e = count; e < whole_vectors<T>(count); ++e) {
      space.weight[e] = 0;
    }
    Vec<T, W> totals = {};
    for (int64_t e = 0; e < count; e += W) {
      totals += Load<W>::of(space.weight + e);
    }
    total = LaneSum<T, W>::of(totals);
  }
  const T* own = x + v * width;
  T* to = static_cast<T*>(pass.dstudent) + v * width;
  for (int64_t f = 0; f < width; ++f) {
    const T value = space.row[f] - total * own[f];
    to[f] = add ? to[f] + value : value;
  }
}

template <typename I>
inline void load_nodes(const I* col, int64_t count, int64_t* node) {
  for (int64_t e = 0; e < count; ++e) {
    node[e] = col[e];
  }
}

// Log-probabilities of the teacher on a row: target; and its part of the row's statistics.
template <typename T, typename I>
void row_target(const NeighborPass& pass, const NeighborSpace<T>& space, int64_t i, int64_t first,
                int64_t count, T* stats) {
  if (pass.log_target != nullptr) {
    memcpy(space.target, static_cast<const T*>(pass.log_target) + first, count * sizeof(T));
    stats[2] = stats[3] = 0;
    return;
  }
  const I* col = static_cast<const I*>(pass.csr.col) + first;
  similarities<T, I>(pass, pass.teacher, i, col, count, pass.edges - first, space.other, nullptr);
  const Softmax<T> all = row_softmax(space.other, count, space.target);
  for (int64_t e = 0; e < count; ++e) {
    space.target[e] = (space.other[e] - all.most) - all.log_sum;
  }
  stats[2] = all.most;
  stats[3] = all.log_sum;
}

template <typename T, typename I>
void divergence_rows(const NeighborPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  const NeighborSpace<T> space(to.scratch, pass);
  const I* rowptr = static_cast<const I*>(pass.csr.rowptr);
  const bool wanted = pass.dstudent != nullptr;
  const T scale = static_cast<T>(pass.scale);
  double total = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = rowptr[i], count = rowptr[i + 1] - first;
    T* stats = static_cast<T*>(pass.stats) + i * 4;
    if (count == 0) {
      memset(stats, 0, 4 * sizeof(T));
      if (wanted) {
        memset(static_cast<T*>(pass.dstudent) + i * pass.student.width, 0,
               pass.student.width * sizeof(T));
      }
      continue;
    }
    const I* col = static_cast<const I*>(pass.csr.col) + first;
    similarities<T, I>(pass, pass.student, i, col, count, pass.edges - first, space.score,
                       wanted ? space.slope : nullptr);
    row_target<T, I>(pass, space, i, first, count, stats);
    const Softmax<T> all = row_softmax(space.score, count, space.weight);
    stats[0] = all.most;
    stats[1] = all.log_sum;
    T* const p = space.other;
    memcpy(p, space.target, count * sizeof(T));
    exp_row(p, count);
    double divergence = 0;
    for (int64_t e = 0; e < count; ++e) {
      const T log_p = (space.score[e] - all.most) - all.log_sum;
      divergence += p[e] * (space.target[e] - log_p);
    }
    total += divergence;
    if (wanted) {
      for (int64_t e = 0; e < count; ++e) {
        space.weight[e] = scale * (space.weight[e] * all.inverse - p[e]) * space.slope[e];
      }
      load_nodes(col, count, space.node);
      add_gradient<T>(pass, space, i, count, false);
    }
  }
  to.sums[0] += total;
}

// log p of a column's edges from their rows' statistics: `at` 0 the student's, 2 the teacher's.
template <typename T>
inline void column_softmax(const NeighborPass& pass, const int64_t* node, int64_t count, int at,
                           const T* score, T* p) {
  const T* stats = static_cast<const T*>(pass.stats) + at;
  for (int64_t e = 0; e < count; ++e) {
    const T* row = stats + node[e] * 4;
    p[e] = (score[e] - row[0]) - row[1];
  }
}

// Rows of the transpose: every node as a neighbour.
template <typename T, typename I>
void divergence_columns(const NeighborPass& pass, const ConvPartial& to, int64_t begin,
                        int64_t end) {
  const NeighborSpace<T> space(to.scratch, pass);
  const I* rowptr = static_cast<const I*>(pass.csr.rowptr);
  const T* log_target = static_cast<const T*>(pass.log_target);
  const T scale = static_cast<T>(pass.scale);
  for (int64_t v = begin; v < end; ++v) {
    const int64_t first = rowptr[v], count = rowptr[v + 1] - first;
    if (count == 0) {
      continue;
    }
    const int64_t known = pass.edges - first;
    const I* col = static_cast<const I*>(pass.csr.col) + first;
    load_nodes(col, count, space.node);
    similarities<T, I>(pass, pass.student, v, col, count, known, space.score, space.slope);
    column_softmax<T>(pass, space.node, count, 0, space.score, space.weight);
    if (log_target == nullptr) {
      similarities<T, I>(pass, pass.teacher, v, col, count, known, space.other, nullptr);
      column_softmax<T>(pass, space.node, count, 2, space.other, space.target);
    } else {
      for (int64_t e = 0; e < count; ++e) {
        space.target[e] = log_target[pass.perm[first + e]];
      }
    }
    exp_row(space.weight, count);
    exp_row(space.target, count);
    for (int64_t e = 0; e < count; ++e) {
      space.weight[e] = scale * (space.weight[e] - space.target[e]) * space.slope[e];
    }
    add_gradient<T>(pass, space, v, count, true);
  }
}

template <typename T, typename I>
void log_softmax_rows(const NeighborPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  const NeighborSpace<T> space(to.scratch, pass);
  const I* rowptr = static_cast<const I*>(pass.csr.rowptr);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = rowptr[i], count = rowptr[i + 1] - first;
    if (count == 0) {
      continue;
    }
    const I* col = static_cast<const I*>(pass.csr.col) + first;
    similarities<T, I>(pass, pass.student, i, col, count, pass.edges - first, space.score, nullptr);
    const Softmax<T> all = row_softmax(space.score, count, space.weight);
    T* out = static_cast<T*>(pass.out) + first;
    for (int64_t e = 0; e < count; ++e) {
      out[e] = (space.score[e] - all.most) - all.log_sum;
    }
  }
}

// -- dispatch ---------------------------------------------------------------------------------

#define ABKD_NEIGHBOR(name, pass, ...)                          \
  if ((pass).dtype == Dtype::kFloat64) {                        \
    (pass).csr.wide ? name<double, int64_t>(pass, __VA_ARGS__)  \
                    : name<double, int32_t>(pass, __VA_ARGS__); \
  } else {                                                      \
    (pass).csr.wide ? name<float, int64_t>(pass, __VA_ARGS__)   \
                    : name<float, int32_t>(pass, __VA_ARGS__);  \
  }

inline void neighbor_softmax(const NeighborPass& pass, const ConvPartial& to, int64_t begin,
                             int64_t end) {
  ABKD_NEIGHBOR(log_softmax_rows, pass, to, begin, end)
}
inline void neighbor_rows(const NeighborPass& pass, const ConvPartial& to, int64_t begin,
                          int64_t end) {
  ABKD_NEIGHBOR(divergence_rows, pass, to, begin, end)
}
inline void neighbor_columns(const NeighborPass& pass, const ConvPartial& to, int64_t begin,
                             int64_t end) {
  ABKD_NEIGHBOR(divergence_columns, pass, to, begin, end)
}

#undef ABKD_NEIGHBOR

const NeighborKernels neighbor_table = {neighbor_softmax, neighbor_rows, neighbor_columns};
