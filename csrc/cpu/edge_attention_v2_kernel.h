// Attention whose scores mix both ends of an edge first (GATv2). No include guard: see
// each_isa.h.
//
// Every pass forms the scores again from l_j + r_i, which it reads anyway.
// clang-format off: each file uses the ones before it
#include "simd.h"
#include "philox.h"
#include "exp.h"
#include "mix.h"
#include "by_dtype.h"
#include "fresh_lanes.h"
#include "lane_tree.h"
#include "attention_tiles.h"
#include "attention_blocks.h"
#include "attention_v2_tiles.h"
// clang-format on

template <typename T>
void attend_v2_rows(const AttentionPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const int64_t row = heads * pass.width;
  const AttentionSpace<A> space(to.scratch, pass.capacity, heads, pass.width);
  const T* x = static_cast<const T*>(pass.x);
  A* stats = static_cast<A*>(pass.stats);
  A* const p = space.edge[0];
  AttentionBlock block;
  for (int64_t start = begin; start < end; start = block.stop) {
    next_block(pass, start, end, &block, space.node);
    const int64_t elements = block.edges() * heads;
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t first = block.begin(i);
      const int64_t count = block.count(i);
      convert_row(static_cast<const T*>(pass.x_dst) + i * row, row, space.row[0]);
      const MixedScores<T, false> scores = {x,
                                            space.node + first,
                                            count,
                                            pass.ahead,
                                            heads,
                                            pass.width,
                                            static_cast<A>(pass.slope),
                                            space.row[0],
                                            nullptr,
                                            static_cast<const A*>(pass.att_src),
                                            p + first * heads,
                                            nullptr};
      scores.run();
      softmax_begin<A>(count, heads, p + first * heads, stats + i * 2 * heads);
    }
    exp_padded(p, elements);
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t first = block.begin(i);
      softmax_end<A>(block.count(i), heads, p + first * heads, stats + i * 2 * heads);
    }
    if (pass.mask != nullptr) {
      drop_run<A>(*pass.mask, block.first * heads, elements, p, p);
    }
    sum_features<T>(pass, block, space.node, p);
  }
}

// p = score - max, from a row's statistics.
template <typename A>
__attribute__((noinline)) void shift_row(int64_t count, int64_t heads, const A* most, A* p) {
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> shift = Load<W>::of(most + h);
    for (int64_t at = h; at < count * heads; at += heads) {
      Store<W>::to(p + at, Load<W>::of(p + at) - shift);
    }
  });
}

// r = alpha, p likewise until its mask comes.
template <typename A>
__attribute__((noinline)) void scale_row(int64_t count, int64_t heads, const A* inverse, A* p,
                                         A* r) {
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> scale = Load<W>::of(inverse + h);
    for (int64_t at = h; at < count * heads; at += heads) {
      const Vec<A, W> alpha = Load<W>::of(p + at) * scale;
      Store<W>::to(p + at, alpha);
      Store<W>::to(r + at, alpha);
    }
  });
}

// q = <dout, l> becomes ds = p q - r times the row's sum of p q.
template <typename A>
__attribute__((noinline)) void score_gradients(int64_t count, int64_t heads, const A* p, A* q,
                                               const A* r) {
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> sum = sum_in_parts<A, W>(count, [&](int64_t e) {
      return Load<W>::of(p + e * heads + h) * Load<W>::of(q + e * heads + h);
    });
    for (int64_t at = h; at < count * heads; at += heads) {
      const Vec<A, W> product = Load<W>::of(p + at) * Load<W>::of(q + at);
      Store<W>::to(q + at, product - Load<W>::of(r + at) * sum);
    }
  });
}

// Leaves alpha with its mask and ds of consecutive edges for the sources' side.
template <typename A>
__attribute__((noinline)) void keep_coefficients(const AttentionPass& pass, int64_t first,
                                                 int64_t count, const A* p, const A* q) {
  const int64_t heads = pass.heads;
  A* const kept = static_cast<A*>(pass.coefficients) + first * 2 * heads;
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    for (int64_t e = 0; e < count; ++e) {
      A* const to = kept + e * 2 * heads + h;
      Store<W>::to(to, Load<W>::of(p + e * heads + h));
      Store<W>::to(to + heads, Load<W>::of(q + e * heads + h));
    }
  });
}

// One row of the destinations' side, its ds known: dr and the gradient of att.
template <typename T>
void mixed_destination(const AttentionPass& pass, const AttentionSpace<Acc<T>>& space,
                       const int64_t* node, int64_t count, const Acc<T>* ds, int64_t i,
                       double* datt) {
  using A = Acc<T>;
  const int64_t row = pass.heads * pass.width;
  const T* x = static_cast<const T*>(pass.x);
  A* const fixed = space.row[2];
  convert_row(static_cast<const T*>(pass.x_dst) + i * row, row, fixed);
  const MixedSums<T, false> sums = {x,           x,          node,       count,
                                    0,           pass.heads, pass.width, static_cast<A>(pass.slope),
                                    fixed,       ds,         nullptr,    space.row[0],
                                    space.row[1]};
  sums.run();
  const A* att = static_cast<const A*>(pass.att_src);
  for (int64_t f = 0; f < row; ++f) {
    space.row[0][f] *= att[f];
    datt[f] += space.row[1][f];
  }
  convert_row(space.row[0], row, static_cast<T*>(pass.dx_dst) + i * row);
}

template <typename T>
void attend_v2_dst_rows(const AttentionPass& pass, const ConvPartial& to, int64_t begin,
                        int64_t end) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const int64_t row = heads * pass.width;
  const AttentionSpace<A> space(to.scratch, pass.capacity, heads, pass.width);
  const T* x = static_cast<const T*>(pass.x);
  const A* stats = static_cast<const A*>(pass.stats);
  A *p = space.edge[0], *q = space.edge[1], *r = space.edge[2];
  AttentionBlock block;
  for (int64_t start = begin; start < end; start = block.stop) {
    next_block(pass, start, end, &block, space.node);
    const int64_t elements = block.edges() * heads;
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t first = block.begin(i);
      const int64_t count = block.count(i);
      convert_row(static_cast<const T*>(pass.x_dst) + i * row, row, space.row[0]);
      convert_row(static_cast<const T*>(pass.dout) + i * row, row, space.row[1]);
      const MixedScores<T, true> scores = {x,
                                           space.node + first,
                                           count,
                                           pass.ahead,
                                           heads,
                                           pass.width,
                                           static_cast<A>(pass.slope),
                                           space.row[0],
                                           space.row[1],
                                           static_cast<const A*>(pass.att_src),
                                           p + first * heads,
                                           q + first * heads};
      scores.run();
      shift_row<A>(count, heads, stats + i * 2 * heads, p + first * heads);
    }
    exp_padded(p, elements);
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t at = block.begin(i) * heads;
      scale_row<A>(block.count(i), heads, stats + (i * 2 + 1) * heads, p + at, r + at);
    }
    if (pass.mask != nullptr) {
      drop_run<A>(*pass.mask, block.first * heads, elements, p, p);
    }
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t first = block.begin(i);
      const int64_t count = block.count(i);
      const int64_t at = first * heads;
      score_gradients<A>(count, heads, p + at, q + at, r + at);
      mixed_destination<T>(pass, space, space.node + first, count, q + at, i, to.sums);
    }
    keep_coefficients<A>(pass, block.first, block.edges(), p, q);
  }
}

// The coefficients of a source's edges, which lie in the graph's order.
template <typename A>
__attribute__((noinline)) void find_coefficients(const AttentionPass& pass, const int64_t* edge,
                                                 int64_t count, A* p, A* q) {
  const A* const kept = static_cast<const A*>(pass.coefficients);
  const int64_t heads = pass.heads;
  constexpr int64_t kAhead = 16;
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    for (int64_t e = 0; e < count; ++e) {
      const A* const from = kept + edge[e] * 2 * heads + h;
      __builtin_prefetch(kept + edge[e + kAhead < count ? e + kAhead : e] * 2 * heads + h);
      Store<W>::to(p + e * heads + h, Load<W>::of(from));
      Store<W>::to(q + e * heads + h, Load<W>::of(from + heads));
    }
  });
}

// Rows of the transpose: gathers r_i and dout_i.
template <typename T>
void attend_v2_src_rows(const AttentionPass& pass, const ConvPartial& to, int64_t begin,
                        int64_t end) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const int64_t row = heads * pass.width;
  const AttentionSpace<A> space(to.scratch, pass.capacity, heads, pass.width);
  const A* att = static_cast<const A*>(pass.att_src);
  A *p = space.edge[0], *q = space.edge[1], *own = space.row[2];
  AttentionBlock block;
  for (int64_t start = begin; start < end; start = block.stop) {
    next_block(pass, start, end, &block, space.node);
    find_coefficients<A>(pass, pass.perm + block.first, block.edges(), p, q);
    for (int64_t j = block.row; j < block.stop; ++j) {
      const int64_t first = block.begin(j);
      convert_row(static_cast<const T*>(pass.x) + j * row, row, own);
      const MixedSums<T, true> sums = {static_cast<const T*>(pass.x_dst),
                                       static_cast<const T*>(pass.dout),
                                       space.node + first,
                                       block.count(j),
                                       pass.ahead,
                                       heads,
                                       pass.width,
                                       static_cast<A>(pass.slope),
                                       own,
                                       q + first * heads,
                                       p + first * heads,
                                       space.row[0],
                                       space.row[1]};
      sums.run();
      for (int64_t f = 0; f < row; ++f) {
        space.row[1][f] += att[f] * space.row[0][f];
      }
      convert_row(space.row[1], row, static_cast<T*>(pass.dx) + j * row);
    }
  }
}

// -- dispatch ------------------------------------------------------------------------------

#define ABKD_PASS(name, T, pass, ...) name##_rows<T>(pass, __VA_ARGS__)

inline void attend_v2(const AttentionPass& pass, const ConvPartial& to, int64_t begin,
                      int64_t end) {
  ABKD_BY_DTYPE(ABKD_PASS, attend_v2, pass, to, begin, end)
}
inline void attend_v2_dst(const AttentionPass& pass, const ConvPartial& to, int64_t begin,
                          int64_t end) {
  ABKD_BY_DTYPE(ABKD_PASS, attend_v2_dst, pass, to, begin, end)
}
inline void attend_v2_src(const AttentionPass& pass, const ConvPartial& to, int64_t begin,
                          int64_t end) {
  ABKD_BY_DTYPE(ABKD_PASS, attend_v2_src, pass, to, begin, end)
}

#undef ABKD_PASS

const AttentionV2Kernels attention_v2_table = {attend_v2, attend_v2_dst, attend_v2_src};
