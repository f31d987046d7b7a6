// Scores and sums over edges of GATv2, whose terms mix both ends. No include guard: see
// each_isa.h.

// score[e, head] = <att, leaky(u + fixed)> with u = gathered[node[e]], and, where wanted,
// dots[e, head] = <gathered[node[e]], factor>.
template <typename T, bool DOTS>
struct MixedScores {
  using A = Acc<T>;
  const T* gathered;
  const int64_t* node;
  int64_t count;
  int64_t ahead;
  int64_t heads;
  int64_t width;
  A slope;
  const A* fixed;   // [heads, width]
  const A* factor;  // [heads, width]
  const A* att;     // [heads, width]
  A* score;
  A* dots;

  template <int W, int V, int G>
  __attribute__((noinline)) void tile(const TileAt& at) const {
    using Vector = Vec<A, W>;
    const int64_t stride = heads * width;
    const int64_t begin = at.head * width;
    for (int64_t e = 0; e < count; ++e) {
      const T* const u_row = gathered + node[e] * stride + begin;
      if (ahead != 0) {
        prefetch_tile<T, W, G * V>(gathered + node[e + ahead] * stride + begin + at.start);
      }
      Vector sums[G];
      Vector products[G];
      for (int g = 0; g < G; ++g) {
        Vector sum = {};
        Vector dot = {};
        for (int v = 0; v < V; ++v) {
          const int64_t f = g * width + vector_at<W, V>(at, v);
          const Vector x = Load<W>::of(u_row + f);
          const Vector u = x + Load<W>::of(fixed + begin + f);
          const Vector term = leaky(u, slope) * Load<W>::of(att + begin + f);
          sum += v + 1 < V ? term : only_fresh<A, W>(term, at.fresh);
          if (DOTS) {
            const Vector product = x * Load<W>::of(factor + begin + f);
            dot += v + 1 < V ? product : only_fresh<A, W>(product, at.fresh);
          }
        }
        sums[g] = sum;
        products[g] = dot;
      }
      const int64_t to = e * heads + at.head;
      store_head_sums<A, W, G>(sums, at.start > 0, score + to);
      if (DOTS) {
        store_head_sums<A, W, G>(products, at.start > 0, dots + to);
      }
    }
  }

  void run() const { HeadTiles<kLanes<T>, kHeadTile<T, 2>>::run(*this, heads, width); }
};

// slopes = sum of ds[e] leaky'(u + fixed); others = sum of ds[e] leaky(u + fixed), or, with a
// second gather, of alpha[e] products[node[e]].
template <typename T, bool GATHER>
struct MixedSums {
  using A = Acc<T>;
  const T* gathered;
  const T* products;
  const int64_t* node;
  int64_t count;
  int64_t ahead;
  int64_t heads;
  int64_t width;
  A slope;
  const A* fixed;
  const A* ds;
  const A* alpha;
  A* slopes;
  A* others;

  template <int W, int V, int G>
  __attribute__((noinline)) void tile(const TileAt& at) const {
    using Vector = Vec<A, W>;
    const int64_t stride = heads * width;
    const int64_t begin = at.head * width;
    Vector down[G][V] = {};
    Vector total[G][V] = {};
    for (int64_t e = 0; e < count; ++e) {
      const T* const u_row = gathered + node[e] * stride + begin;
      const T* const d_row = GATHER ? products + node[e] * stride + begin : nullptr;
      if (GATHER && ahead != 0) {
        prefetch_tile<T, W, G * V>(gathered + node[e + ahead] * stride + begin + at.start);
        prefetch_tile<T, W, G * V>(products + node[e + ahead] * stride + begin + at.start);
      }
      for (int g = 0; g < G; ++g) {
        const A d = ds[e * heads + at.head + g];
        const Vector up = Vector{} + d;
        const Vector below = Vector{} + slope * d;
        for (int v = 0; v < V; ++v) {
          const int64_t f = g * width + vector_at<W, V>(at, v);
          const Vector u = Load<W>::of(u_row + f) + Load<W>::of(fixed + begin + f);
          const Vector sloped = u > 0 ? up : below;
          down[g][v] += sloped;
          if (GATHER) {
            total[g][v] += alpha[e * heads + at.head + g] * Load<W>::of(d_row + f);
          } else {
            total[g][v] += sloped * u;
          }
        }
      }
    }
    for (int g = 0; g < G; ++g) {
      for (int v = 0; v < V; ++v) {
        const int64_t f = begin + g * width + vector_at<W, V>(at, v);
        Store<W>::to(slopes + f, down[g][v]);
        Store<W>::to(others + f, total[g][v]);
      }
    }
  }

  void run() const { HeadTiles<kLanes<T>, kHeadTile<T, 4>>::run(*this, heads, width); }
};
