// The fused layer, forward and backward, float and double. No include guard: see simd_begin.h.
//
// Rows go by in blocks that stay in cache from the aggregation to the last store. A block's sums
// over rows are added to the caller's partial sums, so results depend on the caller's ranges of
// rows and not on the threads that run them.

// Rows summed in the features' own dtype before they are added in double.
constexpr int64_t kColumnRows = 48;

// -- column strips -------------------------------------------------------------------------

// N vectors of a block's columns: z = max(z + bias, lowest), sums += z over the rows.
template <typename T, int W, int N>
void finish_columns(T* z, int64_t rows, int64_t width, const T* bias, T lowest, double* sums) {
  using V = Vec<T, W>;
  V shift[N] = {};
  V total[N] = {};
  for (int k = 0; k < N && bias != nullptr; ++k) {
    shift[k] = Load<W>::of(bias + k * W);
  }
  for (int64_t i = 0; i < rows; ++i, z += width) {
    for (int k = 0; k < N; ++k) {
      const V v = Load<W>::of(z + k * W) + shift[k];
      const V kept = v < lowest ? V{} + lowest : v;  // NaN stays
      Store<W>::to(z + k * W, kept);
      total[k] += kept;
    }
  }
  for (int k = 0; k < N; ++k) {
    for (int lane = 0; lane < W; ++lane) {
      sums[k * W + lane] += total[k][lane];
    }
  }
}

// dz = (dout + dsums) where out is positive (out may be null: everywhere), sums += dz.
template <typename T>
struct GradColumns {
  const T* dout;
  const T* dsums;  // one row, or null
  const T* out;
  T* dz;
  int64_t width;
};

template <typename T, int W, int N>
void grad_columns(const GradColumns<T>& at, int64_t rows, int64_t first, double* sums) {
  using V = Vec<T, W>;
  V shift[N] = {};
  V total[N] = {};
  for (int k = 0; k < N && at.dsums != nullptr; ++k) {
    shift[k] = Load<W>::of(at.dsums + first + k * W);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = i * at.width + first;
    for (int k = 0; k < N; ++k) {
      V v = Load<W>::of(at.dout + row + k * W) + shift[k];
      if (at.out != nullptr) {
        v = Load<W>::of(at.out + row + k * W) <= 0 ? V{} : v;
      }
      Store<W>::to(at.dz + row + k * W, v);
      total[k] += v;
    }
  }
  for (int k = 0; k < N; ++k) {
    for (int lane = 0; lane < W; ++lane) {
      sums[first + k * W + lane] += total[k][lane];
    }
  }
}

// All columns: four vectors at a time, then one, then ever narrower ones.
template <typename T, int W>
struct Columns {
  static void finish(T* z, int64_t rows, int64_t width, const T* bias, T lowest, double* sums,
                     int64_t j) {
    const auto shift = [&] { return bias == nullptr ? nullptr : bias + j; };
    for (; W == kLanes<T> && j + 4 * W <= width; j += 4 * W) {
      finish_columns<T, W, 4>(z + j, rows, width, shift(), lowest, sums + j);
    }
    for (; j + W <= width; j += W) {
      finish_columns<T, W, 1>(z + j, rows, width, shift(), lowest, sums + j);
    }
    if constexpr (W > 1) {
      Columns<T, W / 2>::finish(z, rows, width, bias, lowest, sums, j);
    }
  }

  static void grad(const GradColumns<T>& at, int64_t rows, double* sums, int64_t j) {
    for (; W == kLanes<T> && j + 4 * W <= at.width; j += 4 * W) {
      grad_columns<T, W, 4>(at, rows, j, sums);
    }
    for (; j + W <= at.width; j += W) {
      grad_columns<T, W, 1>(at, rows, j, sums);
    }
    if constexpr (W > 1) {
      Columns<T, W / 2>::grad(at, rows, sums, j);
    }
  }
};

// -- blocks --------------------------------------------------------------------------------

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

// Rows [begin, begin + rows) of scale * A x + residual_scale * residual, written to s.
template <typename T>
void aggregate_block(const ConvPass& pass, int64_t begin, int64_t rows, T* s) {
  const int64_t index = pass.csr.wide ? sizeof(int64_t) : sizeof(int32_t);
  Csr csr = pass.csr;
  csr.rowptr = static_cast<const char*>(csr.rowptr) + begin * index;
  const SpmmArgs args = {csr, pass.dtype, pass.value, pass.x, s, nullptr, pass.width, false, false};
  spmm(args, 0, rows);
  if (pass.scale != 1 || pass.residual != nullptr) {
    const T* residual = static_cast<const T*>(pass.residual);
    mix<T>(s, rows * pass.width, static_cast<T>(pass.scale),
           residual == nullptr ? nullptr : residual + begin * pass.width,
           static_cast<T>(pass.residual_scale));
  }
}

// x rows [begin, begin + rows), dropped into `scratch` where there is a mask.
template <typename T>
const T* features_block(const void* x, int64_t width, const DropoutMask* mask, int64_t begin,
                        int64_t rows, T* scratch) {
  const T* block = static_cast<const T*>(x) + begin * width;
  if (mask == nullptr) {
    return block;
  }
  drop_run<T>(*mask, begin * width, rows * width, block, scratch);
  return scratch;
}

template <typename T>
void conv_rows(const ConvPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  const int64_t widest = pass.features_width > pass.width ? pass.features_width : pass.width;
  const int64_t step = conv_block_rows(widest * sizeof(T));
  T* scratch = static_cast<T*>(to.scratch);
  T* dropped = scratch + step * pass.width;
  const T* weight = static_cast<const T*>(pass.weight);
  for (int64_t start = begin; start < end; start += step) {
    const int64_t rows = end - start < step ? end - start : step;
    T* out = pass.out == nullptr ? nullptr : static_cast<T*>(pass.out) + start * pass.width_out;
    T* s = weight == nullptr ? out : scratch;
    if (pass.mixed != nullptr) {
      s = static_cast<T*>(pass.mixed) + start * pass.width;
    }
    aggregate_block<T>(pass, start, rows, s);
    if (pass.features != nullptr) {
      const int64_t width = pass.features_width;
      const T* x = features_block<T>(pass.features, width, pass.mask, start, rows, dropped);
      gemm<T>(width, pass.width, rows, x, 1, width, s, pass.width, static_cast<T*>(to.dweight),
              pass.width, true);
    }
    if (out == nullptr) {
      continue;
    }
    if (weight != nullptr) {
      gemm<T>(rows, pass.width_out, pass.width, s, pass.width, 1, weight, pass.width_out, out,
              pass.width_out, false);
    }
    if (to.sums != nullptr) {
      const T lowest = pass.relu ? 0 : -static_cast<T>(__builtin_inf());
      const T* bias = static_cast<const T*>(pass.bias);
      for (int64_t i = 0; i < rows; i += kColumnRows) {
        const int64_t n = rows - i < kColumnRows ? rows - i : kColumnRows;
        Columns<T, kLanes<T>>::finish(out + i * pass.width_out, n, pass.width_out, bias, lowest,
                                      to.sums, 0);
      }
    } else if (pass.mask != nullptr) {
      drop_run<T>(*pass.mask, start * pass.width_out, rows * pass.width_out, out, out);
    }
  }
}

// out = drop(x) weight.
template <typename T>
void transform_rows(const ConvPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  const int64_t step = conv_block_rows(pass.width * sizeof(T));
  for (int64_t start = begin; start < end; start += step) {
    const int64_t rows = end - start < step ? end - start : step;
    const T* x =
        features_block<T>(pass.x, pass.width, pass.mask, start, rows, static_cast<T*>(to.scratch));
    gemm<T>(rows, pass.width_out, pass.width, x, pass.width, 1, static_cast<const T*>(pass.weight),
            pass.width_out, static_cast<T*>(pass.out) + start * pass.width_out, pass.width_out,
            false);
  }
}

// dz, its column sums, dweight += features^T dz and ds = dz weight_t, as far as they are wanted.
template <typename T>
void conv_grad_rows(const ConvGrad& grad, const ConvPartial& to, int64_t begin, int64_t end) {
  const int64_t width = grad.width_out;
  const int64_t step = conv_block_rows(width * sizeof(T));
  const auto row = [&](const void* tensor, int64_t start) {
    return tensor == nullptr ? nullptr : static_cast<const T*>(tensor) + start * width;
  };
  for (int64_t start = begin; start < end; start += step) {
    const int64_t rows = end - start < step ? end - start : step;
    T* dz = static_cast<T*>(to.scratch);
    if (grad.dz != nullptr) {
      dz = static_cast<T*>(grad.dz) + start * width;
    }
    for (int64_t i = 0; i < rows; i += kColumnRows) {
      const int64_t n = rows - i < kColumnRows ? rows - i : kColumnRows;
      const GradColumns<T> at = {row(grad.dout, start + i), static_cast<const T*>(grad.dsums),
                                 row(grad.out, start + i), dz + i * width, width};
      Columns<T, kLanes<T>>::grad(at, n, to.sums, 0);
    }
    if (grad.features != nullptr) {
      const T* s = static_cast<const T*>(grad.features) + start * grad.width;
      gemm<T>(grad.width, width, rows, s, 1, grad.width, dz, width, static_cast<T*>(to.dweight),
              width, true);
    }
    if (grad.ds != nullptr) {
      gemm<T>(rows, grad.width, width, dz, width, 1, static_cast<const T*>(grad.weight_t),
              grad.width, static_cast<T*>(grad.ds) + start * grad.width, grad.width, false);
    }
  }
}

#define ABKD_CONV(name, Args)                                                             \
  inline void name(const Args& args, const ConvPartial& to, int64_t begin, int64_t end) { \
    args.dtype == Dtype::kFloat64 ? name##_rows<double>(args, to, begin, end)             \
                                  : name##_rows<float>(args, to, begin, end);             \
  }
ABKD_CONV(conv, ConvPass)
ABKD_CONV(transform, ConvPass)
ABKD_CONV(conv_grad, ConvGrad)
#undef ABKD_CONV
