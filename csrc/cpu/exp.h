// Exponentials of what is not above zero. No include guard: see each_isa.h.

// exp(x) for x <= 0, below 2 units in the last place; 0 below -87.
template <int W>
inline Vec<float, W> exp_negative(Vec<float, W> x) {
  using I = Vec<int32_t, W>;
  const Vec<float, W> shifter = Vec<float, W>{} + 0x1.8p23f;  // rounds to an integer when added
  const Vec<float, W> n = (x * 1.44269504f + shifter) - shifter;
  const Vec<float, W> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float, W> series = r * (1.0f / 5040) + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r * r + r + 1.0f;
  const I exponent = (__builtin_convertvector(n, I) + 127) << 23;
  const Vec<float, W> result = series * bit_cast<Vec<float, W>>(exponent);
  return x < -87.0f ? Vec<float, W>{} : result;  // NaN stays NaN
}

template <int W>
inline Vec<double, W> exp_negative(Vec<double, W> x) {
  for (int lane = 0; lane < W; ++lane) {
    x[lane] = exp(x[lane]);
  }
  return x;
}

inline void exp_all(float* x, int64_t count) {
  constexpr int W = kLanes<float>;
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    Store<W>::to(x + i, exp_negative<W>(Load<W>::of(x + i)));
  }
  for (; i < count; ++i) {
    Store<1>::to(x + i, exp_negative<1>(Load<1>::of(x + i)));
  }
}

inline void exp_all(double* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] = exp(x[i]);
  }
}
