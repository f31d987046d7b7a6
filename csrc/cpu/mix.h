// A weighted sum of two runs. No include guard: see each_isa.h.

// s = scale * s + residual_scale * residual, elementwise; residual may be null.
template <typename T>
void mix(T* s, int64_t count, T scale, const T* residual, T residual_scale) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    Vec<T, W> v = scale * Load<W>::of(s + i);
    if (residual != nullptr) {
      v += residual_scale * Load<W>::of(residual + i);
    }
    Store<W>::to(s + i, v);
  }
  for (; i < count; ++i) {
    const T old = scale * s[i];
    s[i] = residual == nullptr ? old : old + residual_scale * residual[i];
  }
}
