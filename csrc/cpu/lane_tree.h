// Sums or maxima of the lanes of several vectors together. No include guard: see each_isa.h.

template <>
struct IntOf<int64_t> {
  using type = int64_t;
};

// The first or the second halves of all groups of GROUP lanes of u, then of v.
template <typename T, int W, int GROUP, bool SECOND>
inline Vec<T, W> half_groups(Vec<T, W> u, Vec<T, W> v) {
  constexpr int kHalf = GROUP / 2;
  Vec<Int<T>, W> order = {};
  for (int lane = 0; lane < W; ++lane) {
    order[lane] = lane / kHalf * GROUP + lane % kHalf + (SECOND ? kHalf : 0);
  }
#if defined(__clang__)
  Vec<T, W> result = {};
  for (int lane = 0; lane < W; ++lane) {
    result[lane] = order[lane] < W ? u[order[lane]] : v[order[lane] - W];
  }
  return result;
#else
  return __builtin_shuffle(u, v, order);
#endif
}

// Lane n of the result combines the lanes of v[n], n < N <= W: by halves, in LaneSum's order, but
// of all N vectors in one tree, where each alone leaves most lanes idle. Overwrites v.
template <typename T, int W, int N, int GROUP = W>
struct LaneTree {
  template <typename Combine>
  static Vec<T, W> of(Vec<T, W>* v, const Combine& combine) {
    if constexpr (GROUP == 1) {
      return v[0];
    } else {
      constexpr int kLeft = N > 1 ? N / 2 : 1;
      for (int n = 0; n < kLeft; ++n) {
        const Vec<T, W> a = v[N > 1 ? 2 * n : 0];
        const Vec<T, W> b = v[N > 1 ? 2 * n + 1 : 0];
        v[n] = combine(half_groups<T, W, GROUP, false>(a, b), half_groups<T, W, GROUP, true>(a, b));
      }
      return LaneTree<T, W, kLeft, GROUP / 2>::of(v, combine);
    }
  }
};
