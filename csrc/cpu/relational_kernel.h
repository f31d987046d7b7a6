// Blocks of rows of one relation, float and double. No include guard: see each_isa.h.
//
// No two pairs of a relation have the same node, so ranges of pairs write to rows of their own.

// Rows index[start ..] of x, copied to scratch; without an index, x's own rows from start on.
template <typename T, typename I>
const T* gathered_rows(const void* index, const void* x, int64_t width, int64_t start, int64_t rows,
                       T* scratch) {
  const T* source = static_cast<const T*>(x);
  if (index == nullptr) {
    return source + start * width;
  }
  const I* at = static_cast<const I*>(index) + start;
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(scratch + r * width, source + static_cast<int64_t>(at[r]) * width, width * sizeof(T));
  }
  return scratch;
}

template <typename T, typename I>
const T* relational_sums(const RelationalPass& pass, int64_t start, int64_t rows, T* scratch) {
  if (pass.csr.rowptr == nullptr) {
    return gathered_rows<T, I>(pass.gather, pass.x, pass.width, start, rows, scratch);
  }
  Csr csr = pass.csr;
  csr.rowptr = static_cast<const I*>(csr.rowptr) + start;
  const SpmmArgs args = {csr,     pass.dtype, pass.value, pass.x, scratch,
                         nullptr, pass.width, pass.mean,  false,  pass.schedule};
  spmm_kernels().spmm(args, 0, rows);
  return scratch;
}

// to += from, count elements.
template <typename T>
void add_to(int64_t count, const T* from, T* to) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    Store<W>::to(to + i, Load<W>::of(to + i) + Load<W>::of(from + i));
  }
  for (; i < count; ++i) {
    to[i] += from[i];
  }
}

template <typename T, typename I>
void relational_rows(const RelationalPass& pass, const ConvPartial& to, int64_t begin,
                     int64_t end) {
  const int64_t step = relational_block_rows(pass, sizeof(T));
  T* sums = static_cast<T*>(to.scratch);
  T* gathered = sums + step * pass.width;
  T* product_rows = gathered + step * pass.features_width;
  const T* weight = static_cast<const T*>(pass.weight);
  const T* bias = static_cast<const T*>(pass.bias);
  for (int64_t start = begin; start < end; start += step) {
    const int64_t rows = end - start < step ? end - start : step;
    const T* s = relational_sums<T, I>(pass, start, rows, sums);
    for (int64_t r = 0; to.sums != nullptr && r < rows; ++r) {
      for (int64_t j = 0; j < pass.width; ++j) {
        to.sums[j] += s[r * pass.width + j];
      }
    }
    if (pass.features != nullptr) {
      const int64_t width = pass.features_width;
      const T* f =
          gathered_rows<T, I>(pass.features_rows, pass.features, width, start, rows, gathered);
      add_outer<T>(width, pass.width, rows, f, s, static_cast<T*>(to.dweight));
    }
    if (pass.out == nullptr) {
      continue;
    }
    const int64_t n = pass.width_out;
    T* out = static_cast<T*>(pass.out);
    T* target = pass.out_rows == nullptr ? out + start * n : product_rows;
    if (weight != nullptr) {
      product<T>(rows, n, pass.width, s, weight, target);
    }
    if (pass.out_rows != nullptr) {
      const I* at = static_cast<const I*>(pass.out_rows) + start;
      const T* from = weight == nullptr ? s : target;
      for (int64_t r = 0; r < rows; ++r) {
        add_to<T>(n, from + r * n, out + static_cast<int64_t>(at[r]) * n);
      }
    } else if (bias != nullptr) {
      for (int64_t r = 0; r < rows; ++r) {
        add_to<T>(n, bias, target + r * n);
      }
    }
  }
}

inline void relational(const RelationalPass& pass, const ConvPartial& to, int64_t begin,
                       int64_t end) {
  if (pass.dtype == Dtype::kFloat64) {
    pass.csr.wide ? relational_rows<double, int64_t>(pass, to, begin, end)
                  : relational_rows<double, int32_t>(pass, to, begin, end);
  } else {
    pass.csr.wide ? relational_rows<float, int64_t>(pass, to, begin, end)
                  : relational_rows<float, int32_t>(pass, to, begin, end);
  }
}
