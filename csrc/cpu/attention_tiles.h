// Rows of several heads, and sums and products of them. No include guard: see each_isa.h.
//
// A tile is G heads of V vectors each. Widths that are no multiple of the vector end in a vector
// that overlaps the one before it: sums are computed twice, products count its `fresh` lanes only.

template <int W>
struct HeadLanes {
  static constexpr int value = W;
};

// Calls body(lanes, head) for vectors of consecutive heads, the last ones narrower.
template <int W, typename Body>
inline void each_head(int64_t heads, int64_t from, const Body& body) {
  int64_t h = from;
  for (; h + W <= heads; h += W) {
    body(HeadLanes<W>{}, h);
  }
  if constexpr (W > 1) {
    if (h < heads) {
      each_head<W / 2>(heads, h, body);
    }
  }
}

// Vectors of a tile that keeps so many sums of each.
template <typename T, int SUMS>
constexpr int kHeadTile = sizeof(T) == sizeof(float) ? kTile / (SUMS < 2 ? 2 : SUMS) : 4 / SUMS;

// Where a tile lies: from `head` on, features [start, start + last + W) of each of its heads.
struct TileAt {
  int64_t head;
  int64_t start;
  int64_t last;
  int64_t fresh;
};

template <int W, int V>
inline int64_t vector_at(const TileAt& at, int v) {
  return at.start + (v + 1 < V ? v * W : at.last);
}

// Runs body.tile<W, V, G>() over all heads, at most MOST vectors at a time.
template <int W, int MOST>
struct HeadTiles {
  template <typename Body>
  static void run(const Body& body, int64_t heads, int64_t width) {
    if (width < W) {
      HeadTiles<W / 2, MOST>::run(body, heads, width);
    } else if (width == W) {
      groups<1, MOST>(body, heads, 0, {0, 0, 0, W});
    } else if (width <= 2 * W) {
      groups<2, (MOST > 1 ? MOST / 2 : 1)>(body, heads, 0, {0, 0, width - W, width - W});
    } else {
      for (int64_t head = 0; head < heads; ++head) {
        wide<MOST>(body, head, 0, width);
      }
    }
  }

 private:
  // Heads of V vectors, G at a time while there are as many.
  template <int V, int G, typename Body>
  static void groups(const Body& body, int64_t heads, int64_t head, TileAt at) {
    for (; head + G <= heads; head += G) {
      at.head = head;
      body.template tile<W, V, G>(at);
    }
    if constexpr (G > 1) {
      groups<V, G / 2>(body, heads, head, at);
    }
  }

  // One head from `start` on, V vectors at a time while there are as many.
  template <int V, typename Body>
  static void wide(const Body& body, int64_t head, int64_t start, int64_t width) {
    while (start < width) {
      const int64_t left = width - start;
      if (left <= (V - 1) * W) {
        break;
      }
      const int64_t features = left < V * W ? left : V * W;
      const int64_t fresh = features - (V - 1) * W;
      const int64_t from = V == 1 ? start + fresh - W : start;  // a lone vector reaches back
      body.template tile<W, V, 1>({head, from, V == 1 ? 0 : features - W, fresh});
      start += features;
    }
    if constexpr (V > 1) {
      wide<V / 2>(body, head, start, width);
    }
  }
};
template <int MOST>
struct HeadTiles<0, MOST> {
  template <typename Body>
  static void run(const Body&, int64_t, int64_t) {}  // no features
};

// sums[k] = sum over edges of weight[k][e, head] * x[node[e], head], k < K; or, with one weight,
// that times `scale` of the head.
template <typename T, typename Out, int K>
struct WeightedSums {
  using A = Acc<T>;
  const T* x;  // [nodes, heads, width]
  const int64_t* node;
  int64_t count;
  int64_t ahead;  // prefetch the row of the edge so many edges on; 0: none
  int64_t heads;
  int64_t width;
  const A* weight[K];
  Out* sums[K];
  const A* scale = nullptr;

  template <int W, int V, int G>
  __attribute__((noinline)) void tile(const TileAt& at) const {
    using Vector = Vec<A, W>;
    const T* const base = x + at.head * width;
    const int64_t stride = heads * width;
    Vector acc[K][G][V] = {};
    for (int64_t e = 0; e < count; ++e) {
      const T* const row = base + node[e] * stride;
      if (ahead != 0) {
        prefetch_tile<T, W, G * V>(base + node[e + ahead] * stride + at.start);
      }
      for (int g = 0; g < G; ++g) {
        for (int v = 0; v < V; ++v) {
          const Vector value = Load<W>::of(row + g * width + vector_at<W, V>(at, v));
          for (int k = 0; k < K; ++k) {
            acc[k][g][v] += weight[k][e * heads + at.head + g] * value;
          }
        }
      }
    }
    for (int k = 0; k < K; ++k) {
      for (int g = 0; g < G; ++g) {
        for (int v = 0; v < V; ++v) {
          const int64_t to = (at.head + g) * width + vector_at<W, V>(at, v);
          const Vector total = acc[k][g][v];
          Store<W>::to(sums[k] + to, scale == nullptr ? total : total * scale[at.head + g]);
        }
      }
    }
  }

  void run() const { HeadTiles<kLanes<T>, kHeadTile<T, K>>::run(*this, heads, width); }
};

// to[g] = the sum of sums[g]'s lanes, or that more where heads are `continued`: lone ones only.
template <typename A, int W, int G>
inline void store_head_sums(Vec<A, W>* sums, bool continued, A* to) {
  if constexpr (G > 1 && G <= W) {
    const auto add = [](Vec<A, W> a, Vec<A, W> b) { return a + b; };
    const Vec<A, W> all = LaneTree<A, W, G>::of(sums, add);
    memcpy(to, &all, G * sizeof(A));
  } else {
    for (int g = 0; g < G; ++g) {
      const A total = LaneSum<A, W>::of(sums[g]);
      to[g] = continued ? to[g] + total : total;
    }
  }
}

// out[head] = <a[head], b[head]>, rows [heads, width].
template <typename TA, typename TB>
struct HeadDots {
  using A = Acc<TA>;
  const TA* a;
  const TB* b;
  int64_t width;
  A* out;

  template <int W, int V, int G>
  void tile(const TileAt& at) const {
    Vec<A, W> sums[G];
    for (int g = 0; g < G; ++g) {
      const int64_t row = (at.head + g) * width;
      Vec<A, W> acc = {};
      for (int v = 0; v < V; ++v) {
        const int64_t i = row + vector_at<W, V>(at, v);
        const Vec<A, W> product = Load<W>::of(a + i) * Load<W>::of(b + i);
        acc += v + 1 < V ? product : only_fresh<A, W>(product, at.fresh);
      }
      sums[g] = acc;
    }
    store_head_sums<A, W, G>(sums, at.start > 0, out + at.head);
  }
};

template <typename TA, typename TB>
inline void head_dots(const TA* a, const TB* b, int64_t heads, int64_t width, Acc<TA>* out) {
  if (width == 0) {
    memset(out, 0, heads * sizeof(Acc<TA>));
  }
  HeadTiles<kLanes<TA>, 4>::run(HeadDots<TA, TB>{a, b, width, out}, heads, width);
}

// sums += v, in as many steps as registers need.
template <typename A, int W>
inline void add_to_doubles(Vec<A, W> v, double* sums) {
  if constexpr (W > 1 && W * sizeof(double) > ABKD_VECTOR_BYTES) {
    Vec<A, W / 2> halves[2];
    memcpy(halves, &v, sizeof(v));
    add_to_doubles<A, W / 2>(halves[0], sums);
    add_to_doubles<A, W / 2>(halves[1], sums + W / 2);
  } else {
    using D = Vec<double, W>;
    const D total = load_bits<D>(sums) + __builtin_convertvector(v, D);
    memcpy(sums, &total, sizeof(total));
  }
}

// to = from + factor att + other_factor other_att, head by head; from and the others may be null.
template <typename T>
struct AddScaled {
  using A = Acc<T>;
  const A* from;
  const A* factor;
  const A* att;
  const A* other_factor;
  const A* other_att;
  int64_t width;
  T* to;

  template <int W, int V, int G>
  void tile(const TileAt& at) const {
    for (int g = 0; g < G; ++g) {
      const int64_t head = at.head + g;
      for (int v = 0; v < V; ++v) {
        const int64_t f = head * width + vector_at<W, V>(at, v);
        Vec<A, W> sum = factor[head] * Load<W>::of(att + f);
        if (other_att != nullptr) {
          sum += other_factor[head] * Load<W>::of(other_att + f);
        }
        Store<W>::to(to + f, from == nullptr ? sum : sum + Load<W>::of(from + f));
      }
    }
  }

  void run(int64_t heads) const { HeadTiles<kLanes<T>, 4>::run(*this, heads, width); }
};

// sums[head, f] += factor[head] * row[head, f].
template <typename T>
struct AddProducts {
  using A = Acc<T>;
  const A* factor;
  const T* row;
  int64_t width;
  double* sums;

  template <int W, int V, int G>
  void tile(const TileAt& at) const {
    for (int g = 0; g < G; ++g) {
      const int64_t head = at.head + g;
      for (int v = 0; v < V; ++v) {
        const int64_t f = head * width + vector_at<W, V>(at, v);
        const Vec<A, W> product = factor[head] * Load<W>::of(row + f);
        add_to_doubles<A, W>(v + 1 < V ? product : only_fresh<A, W>(product, at.fresh), sums + f);
      }
    }
  }

  void run(int64_t heads) const { HeadTiles<kLanes<T>, 4>::run(*this, heads, width); }
};

// A row in the other of the storage dtype and the accumulation dtype.
template <typename From, typename To>
inline void convert_row(const From* from, int64_t count, To* to) {
  constexpr int W = kLanes<From>;
  int64_t f = 0;
  for (; f + W <= count; f += W) {
    Store<W>::to(to + f, Load<W>::of(from + f));
  }
  for (; f < count; ++f) {
    Store<1>::to(to + f, Load<1>::of(from + f));
  }
}
