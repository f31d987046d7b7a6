// The whole layer of a small student, 4 features in and out, while a row's sum is in a register. No
// include guard: part of dense_kernel.h. Wider layers take the steps of conv_kernel.h.

constexpr int kSquare = 4;

inline bool is_square(const ConvPass& pass, const ConvPartial& to) {
  return pass.width == kSquare && pass.width_out == kSquare && pass.weight != nullptr &&
         pass.out != nullptr && to.sums != nullptr && pass.features == nullptr;
}

// out = act((scale s + residual_scale residual) weight + bias), row by row.
template <typename T>
struct SquareLayer {
  using V = Vec<T, kSquare>;
  T scale;
  T residual_scale;
  const T* residual;
  T* mixed;
  T* out;
  V factors[kSquare];
  V shift = {};
  V lowest = {};

  explicit SquareLayer(const ConvPass& pass)
      : scale(static_cast<T>(pass.scale)),
        residual_scale(static_cast<T>(pass.residual_scale)),
        residual(static_cast<const T*>(pass.residual)),
        mixed(static_cast<T*>(pass.mixed)),
        out(static_cast<T*>(pass.out)) {
    for (int p = 0; p < kSquare; ++p) {
      factors[p] = load_bits<V>(static_cast<const T*>(pass.weight) + p * kSquare);
    }
    if (pass.bias != nullptr) {
      shift = load_bits<V>(static_cast<const T*>(pass.bias));
    }
    if (!pass.relu) {
      lowest -= static_cast<T>(__builtin_inf());
    }
  }

  V finish(V s, int64_t i) const {
    s *= scale;
    if (residual != nullptr) {
      s += residual_scale * load_bits<V>(residual + i * kSquare);
    }
    if (mixed != nullptr) {
      Store<kSquare>::to(mixed + i * kSquare, s);
    }
    V z = shift;
    for (int p = 0; p < kSquare; ++p) {
      z += s[p] * factors[p];
    }
    z = z < lowest ? lowest : z;  // NaN stays
    Store<kSquare>::to(out + i * kSquare, z);
    return z;
  }
};

// The sum of row i.
template <typename T, typename I, bool WEIGHTED>
inline Vec<T, kSquare> square_sum(const SpmmArgs& args, int64_t i) {
  const I* rowptr = static_cast<const I*>(args.csr.rowptr);
  const int64_t first = rowptr[i];
  const int64_t stop = rowptr[i + 1];
  if (stop - first > kChunk) {
    T row[kSquare];
    long_row<T, I, kSquare, WEIGHTED>(args, first, stop, 0, kSquare, row);
    return load_bits<Vec<T, kSquare>>(row);
  }
  return vector_sum<T, I, kSquare, WEIGHTED>(args.schedule, edges_of<T, I>(args, first, stop, 0));
}

template <typename T, typename I, bool WEIGHTED>
void run_square(const ConvPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  const SpmmArgs args = {pass.csr, pass.dtype, pass.value, pass.x, nullptr,
                         nullptr,  kSquare,    false,      false,  pass.schedule};
  const SquareLayer<T> layer(pass);
  NarrowSums<T, kSquare> columns = {to.sums};
  int64_t added = 0;
  const auto visit = [&](int64_t i) {
    columns.total += layer.finish(square_sum<T, I, WEIGHTED>(args, i), i);
    if (++added == kColumnRows) {
      columns.flush(kSquare);
      added = 0;
    }
  };
  if (pass.schedule.by_degree) {
    visit_by_degree(static_cast<const I*>(pass.csr.rowptr), begin, end, visit);
  } else {
    for (int64_t i = begin; i < end; ++i) {
      visit(i);
    }
  }
  columns.flush(kSquare);
}

template <typename T>
void square_rows(const ConvPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  const bool weighted = pass.value != nullptr;
  if (pass.csr.wide) {
    weighted ? run_square<T, int64_t, true>(pass, to, begin, end)
             : run_square<T, int64_t, false>(pass, to, begin, end);
  } else {
    weighted ? run_square<T, int32_t, true>(pass, to, begin, end)
             : run_square<T, int32_t, false>(pass, to, begin, end);
  }
}
