// The fused layer, forward and backward, float and double. No include guard: see each_isa.h.
//
// Rows go by in blocks that stay in cache from the aggregation to the last store. A block's sums
// over rows are added to the caller's partial sums, so results depend on the caller's ranges of
// rows and not on the threads that run them.

// Rows [begin, begin + rows) of scale * A x + residual_scale * residual, written to s.
template <typename T>
void aggregate_block(const ConvPass& pass, int64_t begin, int64_t rows, T* s) {
  const int64_t index = pass.csr.wide ? sizeof(int64_t) : sizeof(int32_t);
  Csr csr = pass.csr;
  csr.rowptr = static_cast<const char*>(csr.rowptr) + begin * index;
  const SpmmArgs args = {csr,     pass.dtype, pass.value, pass.x, s,
                         nullptr, pass.width, false,      false,  pass.schedule};
  spmm_kernels().spmm(args, 0, rows);
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

// Bias, ReLU and column sums of rows that are products already.
template <typename T>
void finish_block(const ConvPass& pass, int64_t rows, T* out, double* sums) {
  const T lowest = pass.relu ? 0 : -static_cast<T>(__builtin_inf());
  const T* bias = static_cast<const T*>(pass.bias);
  for (int64_t i = 0; i < rows; i += kColumnRows) {
    const int64_t n = rows - i < kColumnRows ? rows - i : kColumnRows;
    T* block = out + i * pass.width_out;
    Columns<T, kLanes<T>>::finish(block, n, pass.width_out, bias, lowest, sums, 0);
  }
}

// -- dense products ------------------------------------------------------------------------

// c = a b: a [rows, k], b [k, n].
template <typename T>
void product(int64_t rows, int64_t n, int64_t k, const T* a, const T* b, T* c) {
  const auto narrow = [&](auto lanes) {
    const T lowest = -static_cast<T>(__builtin_inf());
    narrow_product<T, lanes.value>(rows, n, k, a, b, nullptr, lowest, c, nullptr);
  };
  if (k > kNarrowDepth || !with_narrow<T>(n, narrow)) {
    gemm<T>(rows, n, k, a, k, 1, b, n, c, n, false);
  }
}

// out = act(a weight + bias), sums += out.
template <typename T>
void finished_product(const ConvPass& pass, int64_t rows, const T* a, T* out, double* sums) {
  const int64_t n = pass.width_out;
  const T lowest = pass.relu ? 0 : -static_cast<T>(__builtin_inf());
  const T* weight = static_cast<const T*>(pass.weight);
  const T* bias = static_cast<const T*>(pass.bias);
  const auto narrow = [&](auto lanes) {
    narrow_product<T, lanes.value>(rows, n, pass.width, a, weight, bias, lowest, out, sums);
  };
  if (pass.width > kNarrowDepth || !with_narrow<T>(n, narrow)) {
    gemm<T>(rows, n, pass.width, a, pass.width, 1, weight, n, out, n, false);
    finish_block<T>(pass, rows, out, sums);
  }
}

// c [m, n] += a^T b: a [rows, m], b [rows, n].
template <typename T>
void add_outer(int64_t m, int64_t n, int64_t rows, const T* a, const T* b, T* c) {
  const auto narrow = [&](auto lanes) { narrow_outer<T, lanes.value>(m, n, rows, a, b, c); };
  if (!with_narrow<T>(n, narrow)) {
    gemm<T>(m, n, rows, a, 1, m, b, n, c, n, true);
  }
}

// -- rows ----------------------------------------------------------------------------------

template <typename T>
void conv_rows(const ConvPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  if (is_square(pass, to)) {
    square_rows<T>(pass, to, begin, end);
    return;
  }
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
      add_outer<T>(width, pass.width, rows, x, s, static_cast<T*>(to.dweight));
    }
    if (out == nullptr) {
      continue;
    }
    if (weight != nullptr && to.sums != nullptr) {
      finished_product<T>(pass, rows, s, out, to.sums);
    } else if (weight != nullptr) {
      product<T>(rows, pass.width_out, pass.width, s, weight, out);
    } else if (to.sums != nullptr) {
      finish_block<T>(pass, rows, out, to.sums);
    }
    if (to.sums == nullptr && pass.mask != nullptr) {
      drop_run<T>(*pass.mask, start * pass.width_out, rows * pass.width_out, out, out);
    }
  }
}

// out = drop(x) weight, finished where sums are wanted.
template <typename T>
void transform_rows(const ConvPass& pass, const ConvPartial& to, int64_t begin, int64_t end) {
  const int64_t step = conv_block_rows(pass.width * sizeof(T));
  for (int64_t start = begin; start < end; start += step) {
    const int64_t rows = end - start < step ? end - start : step;
    const T* x =
        features_block<T>(pass.x, pass.width, pass.mask, start, rows, static_cast<T*>(to.scratch));
    T* out = static_cast<T*>(pass.out) + start * pass.width_out;
    if (to.sums != nullptr) {
      finished_product<T>(pass, rows, x, out, to.sums);
    } else {
      product<T>(rows, pass.width_out, pass.width, x, static_cast<const T*>(pass.weight), out);
    }
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
      const auto narrow = [&](auto lanes) { narrow_grad<T, lanes.value>(at, n, to.sums); };
      if (!with_narrow<T>(width, narrow)) {
        Columns<T, kLanes<T>>::grad(at, n, to.sums, 0);
      }
    }
    if (grad.features != nullptr) {
      const T* s = static_cast<const T*>(grad.features) + start * grad.width;
      add_outer<T>(grad.width, width, rows, s, dz, static_cast<T*>(to.dweight));
    }
    if (grad.ds != nullptr) {
      product<T>(rows, grad.width, width, dz, static_cast<const T*>(grad.weight_t),
                 static_cast<T*>(grad.ds) + start * grad.width);
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
