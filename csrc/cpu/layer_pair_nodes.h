// Blocks of nodes for layer_pair's kernels: rows widened to the compute dtype, and scratch memory.
// No include guard: see each_isa.h.

// Hands out aligned buffers; on a null base it only counts the bytes.
struct Scratch {
  void* base;
  int64_t used;

  template <typename T>
  T* take(int64_t count) {
    T* buffer = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return buffer;
  }
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// `count` elements `stride` apart, one after the other.
template <typename T, typename From>
inline void copy_elements(const From* source, int64_t stride, int64_t count, T* out) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<T>(widen(source[i]));
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(widen(source[i * stride]));
  }
}

inline int64_t element_size(Dtype dtype) {
  return dtype == Dtype::kBFloat16 ? 2 : dtype == Dtype::kFloat32 ? 4 : 8;
}

// Columns [first, first + count) of one row, in the compute dtype.
template <typename T>
inline void load_row(const LayerStates& x, Dtype dtype, int64_t node, int64_t first, int64_t count,
                     T* out) {
  const int64_t offset = node * x.row + first * x.column;
  switch (dtype) {
    case Dtype::kBFloat16:
      copy_elements(static_cast<const BFloat16*>(x.data) + offset, x.column, count, out);
      break;
    case Dtype::kFloat32:
      copy_elements(static_cast<const float*>(x.data) + offset, x.column, count, out);
      break;
    default:
      copy_elements(static_cast<const double*>(x.data) + offset, x.column, count, out);
  }
}

// States of `count` nodes from `row` on, less their centre: [count, ld], zero beyond column C.
template <typename T>
void load_states(const NodeSet& set, int64_t row, int64_t count, int64_t ld, T* out) {
  const T* centre = static_cast<const T*>(set.centre);
  for (int64_t v = 0; v < count; ++v, out += ld) {
    const int64_t node = set.node(row + v);
    int64_t column = 0;
    for (int64_t j = 0; j < set.num_student; ++j) {
      load_row(set.state[j], set.dtype, node, 0, set.state[j].width, out + column);
      column += set.state[j].width;
    }
    for (int64_t i = 0; i < column; ++i) {
      out[i] -= centre[i];
    }
    for (int64_t i = column; i < ld; ++i) {
      out[i] = 0;
    }
  }
}

// total (+)= part, in float64.
template <typename T>
inline void add_to(double* total, const T* part, int64_t count, bool first) {
  if (first) {
    for (int64_t i = 0; i < count; ++i) {
      total[i] = part[i];
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    total[i] += part[i];
  }
}

// Sum of the lanes in float64, in a fixed order.
template <int W>
inline double lane_sum(Vec<float, W> v) {
  Vec<float, W / 2> halves[2];
  memcpy(halves, &v, sizeof(v));
  using D = Vec<double, W / 2>;
  return LaneSum<double, W / 2>::of(__builtin_convertvector(halves[0], D) +
                                    __builtin_convertvector(halves[1], D));
}
template <int W>
inline double lane_sum(Vec<double, W> v) {
  return LaneSum<double, W>::of(v);
}
