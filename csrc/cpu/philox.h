// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) and the dropout made of it. No include guard:
// see each_isa.h.
//
// A counter's four words sit in four vectors of 64-bit lanes, because the multiplication of two
// 32-bit words gives 64 bits. Only the lower half of a lane counts; what rounds leave in the upper
// half is never read. kChains independent vectors hide the latency of the multiplications.

using Lanes64 = Vec<uint64_t, ABKD_VECTOR_BYTES / 8>;
constexpr int kCounters = ABKD_VECTOR_BYTES / 8;
constexpr int kChains = 4;
constexpr int kPhiloxWords = 4 * kCounters * kChains;

// The 64-bit products of the lower halves.
inline Lanes64 widening_product(Lanes64 a, uint64_t factor) {
  const Lanes64 b = Lanes64{} + factor;
#if ABKD_VECTOR_BYTES >= 64
  return (Lanes64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif ABKD_VECTOR_BYTES >= 32
  return (Lanes64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Lanes64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * b;
#endif
}

// Lane l holds counter l / 2, from the middle on for odd l: then two unpack instructions put the
// words of consecutive counters in order.
inline void store_words(Lanes64 a, Lanes64 b, uint32_t* words) {
#if ABKD_VECTOR_BYTES >= 64
  const Lanes64 low = (Lanes64)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
  const Lanes64 high = (Lanes64)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#elif ABKD_VECTOR_BYTES >= 32
  const Lanes64 low = (Lanes64)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
  const Lanes64 high = (Lanes64)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  const Lanes64 low = {a[0], b[0]};
  const Lanes64 high = {a[1], b[1]};
#endif
  memcpy(words, &low, sizeof(low));
  memcpy(words + 2 * kCounters, &high, sizeof(high));
}

// The words of the counters whose two lower words are in c[.][0], lane by lane.
inline void philox_rounds(const DropoutMask& mask, Lanes64 (*c)[4], uint32_t* words) {
  for (int u = 0; u < kChains; ++u) {
    c[u][1] = c[u][0] >> 32;
    c[u][2] = Lanes64{} + mask.layer;
    c[u][3] = Lanes64{} + mask.step;
  }
  uint32_t key0 = static_cast<uint32_t>(mask.seed);
  uint32_t key1 = static_cast<uint32_t>(mask.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int u = 0; u < kChains; ++u) {
      const Lanes64 even = widening_product(c[u][0], 0xD2511F53);
      const Lanes64 odd = widening_product(c[u][2], 0xCD9E8D57);
      c[u][0] = (odd >> 32) ^ c[u][1] ^ key0;
      c[u][1] = odd;
      c[u][2] = (even >> 32) ^ c[u][3] ^ key1;
      c[u][3] = even;
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  for (int u = 0; u < kChains; ++u) {
    const Lanes64 a = (c[u][0] & 0xffffffff) | (c[u][1] << 32);
    const Lanes64 b = (c[u][2] & 0xffffffff) | (c[u][3] << 32);
    store_words(a, b, words + 4 * kCounters * u);
  }
}

// The number of the counter that a lane holds.
inline int lane_order(int lane) { return lane / 2 + lane % 2 * (kCounters / 2); }

// words[w] = word w % 4 of counter first + w / 4, for kPhiloxWords words.
inline void philox_words(const DropoutMask& mask, uint64_t first, uint32_t* words) {
  Lanes64 order = {};
  for (int lane = 0; lane < kCounters; ++lane) {
    order[lane] = lane_order(lane);
  }
  Lanes64 c[kChains][4];
  for (int u = 0; u < kChains; ++u) {
    c[u][0] = order + (first + u * kCounters);
  }
  philox_rounds(mask, c, words);
}

// words[w] = word w % 4 of counters[w / 4], for kPhiloxWords words.
inline void philox_words_of(const DropoutMask& mask, const uint64_t* counters, uint32_t* words) {
  Lanes64 c[kChains][4];
  for (int u = 0; u < kChains; ++u) {
    for (int lane = 0; lane < kCounters; ++lane) {
      c[u][0][lane] = counters[u * kCounters + lane_order(lane)];
    }
  }
  philox_rounds(mask, c, words);
}

// W elements; words are their random numbers.
template <typename T, int W>
inline void drop(const DropoutMask& mask, const uint32_t* words, const T* x, T* out) {
  using V = Vec<Acc<T>, W>;
  using M = Vec<Int<Acc<T>>, W>;
  const Vec<int32_t, W> kept = load_bits<Vec<uint32_t, W>>(words) >= mask.threshold;
  const V scaled = Load<W>::of(x) * static_cast<Acc<T>>(mask.scale);
  Store<W>::to(out, __builtin_convertvector(kept, M) ? scaled : V{});
}

// out[i] = scale * x[i] where element first + i of the mask is kept, else 0. x may be out.
template <typename T>
void drop_run(const DropoutMask& mask, int64_t first, int64_t count, const T* x, T* out) {
  constexpr int W = kLanes<T>;
  uint32_t words[kPhiloxWords];
  uint64_t counter = static_cast<uint64_t>(first) / 4;
  int64_t skip = first % 4;
  for (int64_t done = 0; done < count;) {
    philox_words(mask, counter, words);
    const int64_t ready = kPhiloxWords - skip;
    const int64_t n = ready < count - done ? ready : count - done;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      drop<T, W>(mask, words + skip + i, x + done + i, out + done + i);
    }
    for (; i < n; ++i) {
      drop<T, 1>(mask, words + skip + i, x + done + i, out + done + i);
    }
    done += n;
    counter += kPhiloxWords / 4;
    skip = 0;
  }
}

template <typename T>
void drop_elements(const DropoutArgs& args, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(args.x) + begin;
  drop_run(args.mask, begin, end - begin, x, static_cast<T*>(args.out) + begin);
}

inline void dropout(const DropoutArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case Dtype::kFloat32:
      return drop_elements<float>(args, begin, end);
    case Dtype::kFloat64:
      return drop_elements<double>(args, begin, end);
    case Dtype::kBFloat16:
      return drop_elements<BFloat16>(args, begin, end);
    case Dtype::kFloat16:
      return drop_elements<Float16>(args, begin, end);
  }
}

// The first `count` words from counter `first` on.
inline void random_words(const DropoutMask& mask, uint64_t first, int64_t count, uint32_t* words) {
  uint32_t batch[kPhiloxWords];
  for (int64_t done = 0; done < count; done += kPhiloxWords) {
    philox_words(mask, first + static_cast<uint64_t>(done / 4), batch);
    const int64_t n = kPhiloxWords < count - done ? kPhiloxWords : count - done;
    memcpy(words + done, batch, n * sizeof(uint32_t));
  }
}
