// Attention scored node by node (GAT), forward and backward. No include guard: see each_isa.h.

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
// clang-format on

// -- forward -------------------------------------------------------------------------------

// p [count, heads] = scores of a row's edges.
template <typename A>
__attribute__((noinline)) void row_scores(const AttentionPass& pass, const int64_t* node,
                                          int64_t count, const A* dst, const A* edge, A* p) {
  const A* src = static_cast<const A*>(pass.score_src);
  const A slope = static_cast<A>(pass.slope);
  const int64_t heads = pass.heads;
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> own = Load<W>::of(dst + h);
    for (int64_t e = 0; e < count; ++e) {
      Vec<A, W> score = Load<W>::of(src + node[e] * heads + h) + own;
      if (edge != nullptr) {
        score += Load<W>::of(edge + e * heads + h);
      }
      Store<W>::to(p + e * heads + h, leaky(score, slope));
    }
  });
}

template <typename T>
void attend_rows(const AttentionPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const AttentionSpace<A> space(to.scratch, pass.capacity, heads, pass.width);
  const A* score_dst = static_cast<const A*>(pass.score_dst);
  const A* score_edge = static_cast<const A*>(pass.score_edge);
  A* stats = static_cast<A*>(pass.stats);
  A* const p = space.edge[0];
  AttentionBlock block;
  for (int64_t start = begin; start < end; start = block.stop) {
    next_block(pass, start, end, &block, space.node);
    const int64_t elements = block.edges() * heads;
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t first = block.begin(i);
      const int64_t count = block.count(i);
      const A* edge =
          score_edge == nullptr ? nullptr : score_edge + (block.first + block.begin(i)) * heads;
      row_scores<A>(pass, space.node + first, count, score_dst + i * heads, edge,
                    p + first * heads);
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

// -- backward: p = exp(score - max) becomes alpha with its mask, q the slope times that --------

// p = leaky score - max, q = the slope where it was taken, for a row's edges.
template <typename A>
__attribute__((noinline)) void row_slopes(const AttentionPass& pass, const int64_t* node,
                                          int64_t count, const A* dst, const A* most, const A* edge,
                                          A* p, A* q) {
  const A* src = static_cast<const A*>(pass.score_src);
  const A slope = static_cast<A>(pass.slope);
  const int64_t heads = pass.heads;
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> own = Load<W>::of(dst + h);
    const Vec<A, W> shift = Load<W>::of(most + h);
    for (int64_t e = 0; e < count; ++e) {
      Vec<A, W> score = Load<W>::of(src + node[e] * heads + h) + own;
      if (edge != nullptr) {
        score += Load<W>::of(edge + e * heads + h);
      }
      const Vec<A, W> sloped = score > 0 ? Vec<A, W>{} + 1 : Vec<A, W>{} + slope;
      Store<W>::to(p + e * heads + h, score * sloped - shift);
      Store<W>::to(q + e * heads + h, sloped);
    }
  });
}

// p = alpha, r = q alpha, and r's sum over the row.
template <typename A>
__attribute__((noinline)) void weigh_row(int64_t count, int64_t heads, const A* inverse, A* p,
                                         const A* q, A* r, A* sum) {
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> scale = Load<W>::of(inverse + h);
    const Vec<A, W> total = sum_in_parts<A, W>(count, [&](int64_t e) {
      const int64_t at = e * heads + h;
      const Vec<A, W> alpha = Load<W>::of(p + at) * scale;
      const Vec<A, W> sloped = Load<W>::of(q + at) * alpha;
      Store<W>::to(p + at, alpha);
      Store<W>::to(r + at, sloped);
      return sloped;
    });
    Store<W>::to(sum + h, total);
  });
}

// q *= p.
template <typename A>
inline void multiply(int64_t count, const A* p, A* q) {
  constexpr int W = kLanes<A>;
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    Store<W>::to(q + i, Load<W>::of(p + i) * Load<W>::of(q + i));
  }
  for (; i < count; ++i) {
    q[i] *= p[i];
  }
}

// The scores' gradients at a row's edges: q <dout, x> - r delta.
template <typename T>
void edge_gradients(const AttentionPass& pass, const int64_t* node, int64_t count, const T* dout,
                    const Acc<T>* delta, const Acc<T>* q, const Acc<T>* r, Acc<T>* dots,
                    Acc<T>* out) {
  const int64_t heads = pass.heads;
  for (int64_t e = 0; e < count; ++e) {
    const T* x = static_cast<const T*>(pass.x) + node[e] * heads * pass.width;
    head_dots(dout, x, heads, pass.width, dots);
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = e * heads + h;
      out[at] = q[at] * dots[h] - r[at] * delta[h];
    }
  }
}

// row[0] = the sum of p x over edges, and of it and of the sum of q x the dots with `fixed`, head
// by head: dots [2, heads].
template <typename T>
void sums_and_dots(const AttentionPass& pass, const AttentionSpace<Acc<T>>& space, const void* x,
                   const int64_t* node, int64_t count, const Acc<T>* p, const Acc<T>* q,
                   const T* fixed) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const int64_t row = heads * pass.width;
  WeightedSums<T, A, 2> sums = {static_cast<const T*>(x),
                                node,
                                count < kSumPart ? count : kSumPart,
                                pass.ahead,
                                heads,
                                pass.width,
                                {p, q},
                                {space.row[0], space.row[1]}};
  A* const dots = space.dots;
  sums.run();
  head_dots(fixed, space.row[0], heads, pass.width, dots);
  head_dots(fixed, space.row[1], heads, pass.width, dots + heads);
  if (count <= kSumPart) {
    return;
  }
  for (int64_t k = 0; k < 2 * heads; ++k) {
    space.exact[k] = dots[k];
  }
  sums.sums[0] = space.row[2];
  for (int64_t e = kSumPart; e < count; e += kSumPart) {
    sums.node = node + e;
    sums.count = count - e < kSumPart ? count - e : kSumPart;
    sums.weight[0] = p + e * heads;
    sums.weight[1] = q + e * heads;
    sums.run();
    head_dots(fixed, space.row[2], heads, pass.width, dots);
    head_dots(fixed, space.row[1], heads, pass.width, dots + heads);
    mix<A>(space.row[0], row, 1, space.row[2], 1);
    for (int64_t k = 0; k < 2 * heads; ++k) {
      space.exact[k] += dots[k];
    }
  }
  for (int64_t k = 0; k < 2 * heads; ++k) {
    dots[k] = static_cast<A>(space.exact[k]);
  }
}

// One row of the destinations' side: its record, the gradient of its score and what follows of it.
template <typename T>
void destination_row(const AttentionPass& pass, const AttentionSpace<Acc<T>>& space, int64_t i,
                     const Acc<T>* sums, double* datt) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const int64_t row = heads * pass.width;
  const A* stats = static_cast<const A*>(pass.stats) + i * 2 * heads;
  A* record = static_cast<A*>(pass.records) + i * 4 * heads;
  A* delta = record + 3 * heads;
  A* dscore = static_cast<A*>(pass.dscore_dst) + i * heads;
  for (int64_t h = 0; h < heads; ++h) {
    delta[h] = space.dots[h];
    record[h] = static_cast<const A*>(pass.score_dst)[i * heads + h];
    record[heads + h] = stats[h];
    record[2 * heads + h] = stats[heads + h];
    dscore[h] = space.dots[heads + h] - delta[h] * sums[h];
  }
  if (pass.dx_dst != nullptr) {
    const A* att = static_cast<const A*>(pass.att_dst);
    T* dx = static_cast<T*>(pass.dx_dst) + i * row;
    const T* x_dst = static_cast<const T*>(pass.x_dst) + i * row;
    AddScaled<T>{nullptr, dscore, att, nullptr, nullptr, pass.width, dx}.run(heads);
    AddProducts<T>{dscore, x_dst, pass.width, datt + row}.run(heads);
  }
}

template <typename T>
void attend_dst_rows(const AttentionPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const AttentionSpace<A> space(to.scratch, pass.capacity, heads, pass.width);
  const A* score_edge = static_cast<const A*>(pass.score_edge);
  A *p = space.edge[0], *q = space.edge[1], *r = space.edge[2];
  AttentionBlock block;
  for (int64_t start = begin; start < end; start = block.stop) {
    next_block(pass, start, end, &block, space.node);
    const int64_t elements = block.edges() * heads;
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t at = block.begin(i) * heads;
      const A* edge =
          score_edge == nullptr ? nullptr : score_edge + (block.first + block.begin(i)) * heads;
      row_slopes<A>(pass, space.node + at / heads, block.count(i),
                    static_cast<const A*>(pass.score_dst) + i * heads,
                    static_cast<const A*>(pass.stats) + i * 2 * heads, edge, p + at, q + at);
    }
    exp_padded(p, elements);
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t at = block.begin(i) * heads;
      const A* inverse = static_cast<const A*>(pass.stats) + (i * 2 + 1) * heads;
      weigh_row<A>(block.count(i), heads, inverse, p + at, q + at, r + at,
                   space.sums + (i - block.row) * heads);
    }
    if (pass.mask != nullptr) {
      drop_run<A>(*pass.mask, block.first * heads, elements, p, p);
    }
    multiply(elements, p, q);
    for (int64_t i = block.row; i < block.stop; ++i) {
      const int64_t first = block.begin(i);
      const int64_t count = block.count(i);
      const T* dout = static_cast<const T*>(pass.dout) + i * heads * pass.width;
      sums_and_dots<T>(pass, space, pass.x, space.node + first, count, p + first * heads,
                       q + first * heads, dout);
      destination_row<T>(pass, space, i, space.sums + (i - block.row) * heads, to.sums);
      if (pass.dscore_edge != nullptr) {
        const A* delta = static_cast<const A*>(pass.records) + (i * 4 + 3) * heads;
        edge_gradients<T>(
            pass, space.node + first, count, dout, delta, q + first * heads, r + first * heads,
            space.dots, static_cast<A*>(pass.dscore_edge) + (block.first + block.begin(i)) * heads);
      }
    }
  }
}

// A source's edges, from the destinations' records: p = leaky score - max, q = its slope.
template <typename A>
__attribute__((noinline)) void source_slopes(const AttentionPass& pass, const int64_t* node,
                                             const int64_t* edge, int64_t count, const A* src, A* p,
                                             A* q) {
  const A* records = static_cast<const A*>(pass.records);
  const A* score_edge = static_cast<const A*>(pass.score_edge);
  const A slope = static_cast<A>(pass.slope);
  const int64_t heads = pass.heads;
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> own = Load<W>::of(src + h);
    for (int64_t e = 0; e < count; ++e) {
      const A* record = records + node[e] * 4 * heads + h;
      Vec<A, W> score = own + Load<W>::of(record);
      if (score_edge != nullptr) {
        score += Load<W>::of(score_edge + edge[e] * heads + h);
      }
      const Vec<A, W> sloped = score > 0 ? Vec<A, W>{} + 1 : Vec<A, W>{} + slope;
      Store<W>::to(p + e * heads + h, score * sloped - Load<W>::of(record + heads));
      Store<W>::to(q + e * heads + h, sloped);
    }
  });
}

// p = alpha; sum = that of q alpha delta.
template <typename A>
__attribute__((noinline)) void weigh_source(const AttentionPass& pass, const int64_t* node,
                                            int64_t count, A* p, const A* q, A* sum) {
  const A* records = static_cast<const A*>(pass.records);
  const int64_t heads = pass.heads;
  each_head<kLanes<A>>(heads, 0, [&](auto lanes, int64_t h) {
    constexpr int W = decltype(lanes)::value;
    const Vec<A, W> total = sum_in_parts<A, W>(count, [&](int64_t e) {
      const A* record = records + (node[e] * 4 + 2) * heads + h;
      const Vec<A, W> alpha = Load<W>::of(p + e * heads + h) * Load<W>::of(record);
      Store<W>::to(p + e * heads + h, alpha);
      return alpha * Load<W>::of(q + e * heads + h) * Load<W>::of(record + heads);
    });
    Store<W>::to(sum + h, total);
  });
}

// One row of the sources' side: from the sums of dout to dx and the gradients of att.
template <typename T>
void source_row(const AttentionPass& pass, const AttentionSpace<Acc<T>>& space, int64_t j,
                const Acc<T>* sums, double* datt) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const int64_t width = pass.width;
  const T* x = static_cast<const T*>(pass.x) + j * heads * width;
  A* const dscore = space.dots + 2 * heads;
  for (int64_t h = 0; h < heads; ++h) {
    dscore[h] = space.dots[heads + h] - sums[h];
  }
  const A* own = static_cast<const A*>(pass.dscore_dst) + j * heads;
  const A* att_dst = pass.shared ? static_cast<const A*>(pass.att_dst) : nullptr;
  T* dx = static_cast<T*>(pass.dx) + j * heads * width;
  AddScaled<T>{space.row[0], dscore, static_cast<const A*>(pass.att_src), own, att_dst, width, dx}
      .run(heads);
  AddProducts<T>{dscore, x, width, datt}.run(heads);
  if (pass.shared) {
    AddProducts<T>{own, x, width, datt + heads * width}.run(heads);
  }
}

// Rows of the transpose.
template <typename T>
void attend_src_rows(const AttentionPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t heads = pass.heads;
  const AttentionSpace<A> space(to.scratch, pass.capacity, heads, pass.width);
  const A* score_src = static_cast<const A*>(pass.score_src);
  A *p = space.edge[0], *q = space.edge[1];
  AttentionBlock block;
  for (int64_t start = begin; start < end; start = block.stop) {
    next_block(pass, start, end, &block, space.node);
    const int64_t edges = block.edges();
    for (int64_t j = block.row; j < block.stop; ++j) {
      const int64_t first = block.begin(j);
      source_slopes<A>(pass, space.node + first, pass.perm + block.first + first, block.count(j),
                       score_src + j * heads, p + first * heads, q + first * heads);
    }
    exp_padded(p, edges * heads);
    for (int64_t j = block.row; j < block.stop; ++j) {
      const int64_t first = block.begin(j);
      weigh_source<A>(pass, space.node + first, block.count(j), p + first * heads,
                      q + first * heads, space.sums + (j - block.row) * heads);
    }
    if (pass.mask != nullptr) {
      edge_words(*pass.mask, pass.perm + block.first, edges, heads, space.bits);
      drop_by_words(*pass.mask, space.bits, edges * heads, p);
    }
    multiply(edges * heads, p, q);
    for (int64_t j = block.row; j < block.stop; ++j) {
      const int64_t first = block.begin(j);
      const T* x = static_cast<const T*>(pass.x) + j * heads * pass.width;
      sums_and_dots<T>(pass, space, pass.dout, space.node + first, block.count(j),
                       p + first * heads, q + first * heads, x);
      source_row<T>(pass, space, j, space.sums + (j - block.row) * heads, to.sums);
    }
  }
}

// out [N, heads] = <x, att>, head by head.
template <typename T>
void score_rows(const AttentionPass& pass, const ConvPartial&, int64_t begin, int64_t end) {
  const int64_t row = pass.heads * pass.width;
  for (int64_t i = begin; i < end; ++i) {
    head_dots(static_cast<const T*>(pass.x) + i * row, static_cast<const Acc<T>*>(pass.att_src),
              pass.heads, pass.width, static_cast<Acc<T>*>(pass.out) + i * pass.heads);
  }
}

// -- dispatch ------------------------------------------------------------------------------

#define ABKD_PASS(name, T, pass, ...) name##_rows<T>(pass, __VA_ARGS__)

inline void score(const AttentionPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  ABKD_BY_DTYPE(ABKD_PASS, score, pass, to, begin, end)
}
inline void attend(const AttentionPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  ABKD_BY_DTYPE(ABKD_PASS, attend, pass, to, begin, end)
}
inline void attend_dst(const AttentionPass& pass, const ConvPartial& to, int64_t begin,
                       int64_t end) {
  ABKD_BY_DTYPE(ABKD_PASS, attend_dst, pass, to, begin, end)
}
inline void attend_src(const AttentionPass& pass, const ConvPartial& to, int64_t begin,
                       int64_t end) {
  ABKD_BY_DTYPE(ABKD_PASS, attend_src, pass, to, begin, end)
}

#undef ABKD_PASS

const AttentionKernels attention_table = {score, attend, attend_dst, attend_src};
