// Vectors of W lanes, and loads and stores that convert: storage dtype <-> accumulation dtype.
//
// No include guard: part of every kernel file, once per instruction set (see simd_begin.h).

// The bits of a 16-bit float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename T>
using Acc = typename AccOf<T>::type;

template <typename T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * W)));
};
template <typename T, int W>
using Vec = typename VectorOf<T, W>::type;

// A signed integer as wide as T: the lanes of a comparison's result.
template <typename T>
struct IntOf {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};
template <typename T>
using Int = typename IntOf<T>::type;

template <typename T>
constexpr int kLanes = ABKD_VECTOR_BYTES / sizeof(Acc<T>);

// Vectors of sums that a kernel keeps in registers at a time.
#if ABKD_VECTOR_BYTES >= 64
constexpr int kTile = 16;  // of 32 registers
#else
constexpr int kTile = 8;
#endif

template <typename V, typename T>
inline V load_bits(const T* source) {
  V result;
  memcpy(&result, source, sizeof(V));
  return result;
}

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <int W>
struct Load {
  using F32 = Vec<float, W>;
  using U32 = Vec<uint32_t, W>;
  using U16 = Vec<uint16_t, W>;

  static F32 of(const float* p) { return load_bits<F32>(p); }
  static Vec<double, W> of(const double* p) { return load_bits<Vec<double, W>>(p); }

  // GCC widens a vector by halves where the intrinsic is one instruction.
  static F32 of(const BFloat16* p) {
#if ABKD_VECTOR_BYTES >= 64
    if constexpr (W == 16) {
      return bit_cast<F32>(bit_cast<U32>(_mm512_cvtepu16_epi32(load_bits<__m256i>(p))) << 16);
    }
#endif
#if ABKD_VECTOR_BYTES >= 32
    if constexpr (W == 8) {
      return bit_cast<F32>(bit_cast<U32>(_mm256_cvtepu16_epi32(load_bits<__m128i>(p))) << 16);
    }
#endif
    return bit_cast<F32>(__builtin_convertvector(load_bits<U16>(p), U32) << 16);
  }

  static F32 of(const Float16* p) {
#if ABKD_VECTOR_BYTES >= 64
    if constexpr (W == 16) {
      return bit_cast<F32>(_mm512_cvtph_ps(load_bits<__m256i>(p)));
    }
#endif
#if ABKD_VECTOR_BYTES >= 32
    if constexpr (W == 8) {
      return bit_cast<F32>(_mm256_cvtph_ps(load_bits<__m128i>(p)));
    }
#endif
    return half_to_float(__builtin_convertvector(load_bits<U16>(p), U32));
  }

 private:
  // Integer steps only, so flush-to-zero modes cannot lose subnormal halves.
  static F32 half_to_float(U32 half) {
    const U32 magnitude = (half & 0x7fff) << 13;
    const U32 exponent = magnitude & 0x0f800000;
    const U32 normal = magnitude + (112u << 23);  // exponent bias 15 -> 127
    const F32 tiny = bit_cast<F32>(normal + (1u << 23)) - 0x1p-14f;
    U32 bits = exponent == 0x0f800000 ? normal + (112u << 23) : normal;  // infinity, NaN
    bits = exponent == 0 ? bit_cast<U32>(tiny) : bits;
    return bit_cast<F32>(bits | ((half & 0x8000) << 16));
  }
};

// Rounds to nearest, ties to even, as torch does.
template <int W>
struct Store {
  using F32 = Vec<float, W>;
  using U32 = Vec<uint32_t, W>;
  using U16 = Vec<uint16_t, W>;

  static void to(float* p, F32 v) { memcpy(p, &v, sizeof(v)); }
  static void to(double* p, Vec<double, W> v) { memcpy(p, &v, sizeof(v)); }

  // AVX512-BF16's instruction takes subnormals for zero; set right, it is no faster than this.
  static void to(BFloat16* p, F32 v) {
    const U32 bits = bit_cast<U32>(v);
#if ABKD_VECTOR_BYTES >= 64
    if constexpr (W == 16) {
      high_halves(p, bit_cast<__m512i>(bits), _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q));
      return;
    }
#endif
    const U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    narrow(p, v == v ? rounded : bits - bits + 0x7fc0);
  }

  static void to(Float16* p, F32 v) {
#if ABKD_VECTOR_BYTES >= 64
    if constexpr (W == 16) {
      const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
      memcpy(p, &half, sizeof(half));
      return;
    }
#endif
#if ABKD_VECTOR_BYTES >= 32
    if constexpr (W == 8) {
      const __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
      memcpy(p, &half, sizeof(half));
      return;
    }
#endif
    const U32 bits = bit_cast<U32>(v);
    const U32 magnitude = bits & 0x7fffffff;
    const U32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Adding 0.5 aligns a subnormal half's last bit with a float's: the addition rounds.
    const U32 tiny = bit_cast<U32>(bit_cast<F32>(magnitude) + 0.5f) - 0x3f000000;
    const U32 zero = bits - bits;
    U32 half = magnitude < (113u << 23) ? tiny : normal;
    half = magnitude >= (143u << 23) ? zero + 0x7c00 : half;  // >= 65536: infinity
    half = magnitude > 0x7f800000 ? zero + 0x7e00 : half;     // NaN
    narrow(p, half | ((bits >> 16) & 0x8000));
  }

 private:
  template <typename T>
  static void narrow(T* p, U32 bits) {
    const U16 low = __builtin_convertvector(bits, U16);
    memcpy(p, &low, sizeof(low));
  }

#if ABKD_VECTOR_BYTES >= 64
  // The bits rounded at half a word, lanes that are no number replaced by NaN.
  static void high_halves(BFloat16* p, __m512i bits, __mmask16 number) {
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
    const __m512i half =
        _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000));
    const __m512i nan = _mm512_set1_epi32(0x7fc00000);
    const __m512i rounded = _mm512_mask_add_epi32(nan, number, bits, half);
    const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    memcpy(p, &high, sizeof(high));
  }
#endif
};

// Sum of the lanes, by halves: a fixed order.
template <typename T, int W>
struct LaneSum {
  static T of(Vec<T, W> v) {
    Vec<T, W / 2> halves[2];
    memcpy(halves, &v, sizeof(v));
    return LaneSum<T, W / 2>::of(halves[0] + halves[1]);
  }
};
template <typename T>
struct LaneSum<T, 1> {
  static T of(Vec<T, 1> v) { return v[0]; }
};

// N vectors of W elements.
template <typename T, int W, int N>
inline void prefetch_tile(const T* source) {
  constexpr int kPerLine = 64 / (W * static_cast<int>(sizeof(T)));
  for (int k = 0; k < N; k += kPerLine > 1 ? kPerLine : 1) {
    __builtin_prefetch(source + k * W);
  }
}
