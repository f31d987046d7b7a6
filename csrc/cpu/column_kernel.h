// Steps of a dense layer that go down the columns of a block. No include guard: see each_isa.h.

// Rows summed in the features' own dtype before they are added in double.
constexpr int64_t kColumnRows = 48;

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
