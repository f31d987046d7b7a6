// Runs that end in a vector which overlaps the one before it. No include guard: see each_isa.h.

// `fresh` in the last so many lanes, `stale` in those before.
template <typename A, int W>
inline Vec<A, W> stale_or(Vec<A, W> stale, Vec<A, W> fresh, int64_t count) {
  Vec<Int<A>, W> order = {};
  for (int lane = 0; lane < W; ++lane) {
    order[lane] = lane;
  }
  return order >= static_cast<Int<A>>(W - count) ? fresh : stale;
}

// v with zeros in all but its last `fresh` lanes.
template <typename A, int W>
inline Vec<A, W> only_fresh(Vec<A, W> v, int64_t fresh) {
  return stale_or<A, W>(Vec<A, W>{}, v, fresh);
}
