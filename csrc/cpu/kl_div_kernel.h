// Divergence between rows of class scores and their targets. No include guard: see each_isa.h.
//
// A row of at least W classes is cut into vectors, the last of which overlaps the one before it. Of
// fewer classes, W rows are taken at a time, transposed: a vector is a class, a lane is a row.

// The first of the largest elements; NaN is larger than any number.
template <typename T>
inline int64_t first_largest(const T* row, int64_t count) {
  int64_t best = 0;
  for (int64_t c = 1; c < count; ++c) {
    best = row[c] > row[best] || (row[c] != row[c] && row[best] == row[best]) ? c : best;
  }
  return best;
}

// Sums in double, lane by lane.
template <typename T>
struct LaneDoubles {
  static constexpr int W = kLanes<T>;
  static constexpr int kParts = sizeof(double) / sizeof(T);
  using Part = Vec<double, W / kParts>;
  Part part[kParts];

  // GCC converts a whole register by halves where the intrinsic is one instruction.
  static void widen(Vec<T, W> v, Part* to) {
    Vec<T, W / kParts> parts[kParts];
    memcpy(parts, &v, sizeof(v));
    for (int k = 0; k < kParts; ++k) {
#if ABKD_VECTOR_BYTES >= 64
      if constexpr (kParts == 2) {
        to[k] = bit_cast<Part>(_mm512_maskz_cvtps_pd(0xff, bit_cast<__m256>(parts[k])));
        continue;
      }
#endif
      to[k] = __builtin_convertvector(parts[k], Part);
    }
  }

  void add(Vec<T, W> v) {
    Part wide[kParts];
    widen(v, wide);
    for (int k = 0; k < kParts; ++k) {
      part[k] += wide[k];
    }
  }

  // += weight (a - b).
  void add_product(Vec<T, W> weight, Vec<T, W> a, Vec<T, W> b) {
    Part factor[kParts], left[kParts], right[kParts];
    widen(weight, factor);
    widen(a, left);
    widen(b, right);
    for (int k = 0; k < kParts; ++k) {
      part[k] += factor[k] * (left[k] - right[k]);
    }
  }

  Part total() const {
    Part total = part[0];
    for (int k = 1; k < kParts; ++k) {
      total += part[k];
    }
    return total;
  }
};

// kRows rows: in lanes of one line of vectors, or each in a line of its own.
template <typename T, bool NARROW>
struct KlDivRows {
  static constexpr int W = kLanes<T>;
  static constexpr int kRows = NARROW ? W : kLanes<double>;
  static constexpr int kLines = NARROW ? 1 : kRows;
  using Vector = Vec<T, W>;
  using Part = typename LaneDoubles<T>::Part;
  using Order = Vec<Int<T>, W>;

  const KlDivArgs& args;
  const int64_t classes = args.classes;
  const int64_t last = NARROW ? (classes - 1) * W : classes - W;  // where the last vector begins
  const int64_t fresh = NARROW ? W : classes - (classes - 1) / W * W;
  const T scale = static_cast<T>(args.inverse_temperature);
  T* const q = static_cast<T*>(args.scratch);  // the target's exponentials, line by line
  T* const transposed = NARROW ? q + classes * W : q;
  T* const p = NARROW ? transposed + classes * W : q;
  int64_t rows[kRows];
  int size = 0;

  explicit KlDivRows(const KlDivArgs& given) : args(given) {}

  const T* logits(int r) const { return static_cast<const T*>(args.logits) + rows[r] * classes; }
  const T* target(int r) const {
    return static_cast<const T*>(args.log_target) + rows[r] * classes;
  }
  T* dlogits(int r) const { return static_cast<T*>(args.dlogits) + rows[r] * classes; }

  // Takes rows that count, from `row` on; the first that it did not take.
  int64_t take(int64_t row, int64_t end) {
    for (size = 0; size < kRows && row < end; ++row) {
      if (args.mask == nullptr || args.mask[row]) {
        rows[size++] = row;
      }
    }
    for (int r = size; size > 0 && r < kRows; ++r) {
      rows[r] = rows[0];  // whose results nobody takes
    }
    return row;
  }

  // Narrow rows as a line.
  const T* transpose(const void* from, T* to) const {
    for (int r = 0; NARROW && r < kRows; ++r) {
      const T* row = static_cast<const T*>(from) + rows[r] * classes;
      for (int64_t c = 0; c < classes; ++c) {
        to[c * W + r] = row[c];
      }
    }
    return to;
  }

  // Calls body(where a vector begins, its fresh lanes) for the vectors of a line.
  template <typename Body>
  void each(const Body& body) const {
    for (int64_t at = 0; at < last; at += W) {
      body(at, W);
    }
    body(last, fresh);
  }

  // Every row's largest element; `line` finds the rows.
  template <typename Line>
  void most(const Line& line, T* to) const {
    Vector best[kLines];
    for (int k = 0; k < kLines; ++k) {
      const T* from = line(k);
      Vector found = Load<W>::of(from);
      each([&](int64_t at, int64_t) {
        const Vector v = Load<W>::of(from + at);
        found = v > found ? v : found;
      });
      best[k] = found;
    }
    if constexpr (!NARROW) {
      best[0] = LaneTree<T, W, kLines>::of(best, [](Vector a, Vector b) { return a > b ? a : b; });
    }
    memcpy(to, best, kRows * sizeof(T));
  }

  // Every row's sum, from those of the lanes of its line.
  void totals(const LaneDoubles<T>* sums, double* to) const {
    if constexpr (NARROW) {
      memcpy(to, sums->part, kRows * sizeof(double));
    } else {
      Part parts[kRows];
      for (int k = 0; k < kRows; ++k) {
        parts[k] = sums[k].total();
      }
      parts[0] = LaneTree<double, kRows, kRows>::of(parts, [](Part a, Part b) { return a + b; });
      memcpy(to, parts, kRows * sizeof(double));
    }
  }

  // A value for every lane of a line.
  Vector lanes(const T* values, int line) const {
    return NARROW ? Load<W>::of(values) : Vector{} + values[line];
  }

  // Whether the label is the first of the row's largest; `sum` is NaN where an element may be.
  bool predicts(const T* row, int64_t label, T largest, double sum) const {
    if (sum != sum) {
      return first_largest(row, classes) == label;
    }
    if (row[label] != largest) {
      return false;
    }
    int64_t before = 0;
    for (int64_t c = 0; c < label; ++c) {
      before += row[c] == largest;
    }
    return before == 0;
  }

  // The first lane where v is `largest`, or what was found before.
  static Order earlier(Order found, Vector v, Vector largest, int64_t at) {
    Order place = {};
    for (int lane = 0; lane < W; ++lane) {
      place[lane] = NARROW ? 0 : lane;
    }
    place += static_cast<Int<T>>(NARROW ? at / W : at);
    return (v == largest) & (place < found) ? place : found;
  }

  // Every row's first, from those of the lanes of its line.
  void firsts(Order* found, Int<T>* to) const {
    if constexpr (!NARROW) {
      using Whole = Int<T>;
      found[0] =
          LaneTree<Whole, W, kLines>::of(found, [](Order a, Order b) { return a < b ? a : b; });
    }
    memcpy(to, found, kRows * sizeof(Int<T>));
  }

  template <bool SOFT>
  double loss(int64_t* correct) const {
    const T* const z_line = transpose(args.logits, transposed);
    const T* const t_line = SOFT ? transpose(args.log_target, q) : nullptr;
    T largest[W], likeliest[W];
    most([&](int k) { return NARROW ? z_line : logits(k); }, largest);
    if constexpr (SOFT) {
      most([&](int k) { return NARROW ? t_line : target(k); }, likeliest);
    }
    LaneDoubles<T> sum[kLines], mass[kLines], cross[kLines];
    Order first_z[kLines], first_t[kLines];
    for (int k = 0; k < kLines; ++k) {
      const T* z = NARROW ? z_line : logits(k);
      const T* t = NARROW || !SOFT ? t_line : target(k);
      const Vector shift = lanes(largest, k);
      const Vector top = SOFT ? lanes(likeliest, k) : shift;
      LaneDoubles<T> own_sum = {}, own_mass = {}, own_cross = {};
      Order own_z = Order{} + static_cast<Int<T>>(classes), own_t = own_z;
      each([&](int64_t at, int64_t count) {
        const Vector v = Load<W>::of(z + at);
        const Vector shifted = (v - shift) * scale;
        own_sum.add(only_fresh<T, W>(exp_negative<W>(shifted), count));
        if constexpr (SOFT) {
          const Vector log_q = Load<W>::of(t + at), zero = {};
          const Vector weight = only_fresh<T, W>(exp_negative<W>(log_q), count);
          own_mass.add(weight);
          own_cross.add_product(weight, weight == 0 ? zero : log_q, weight == 0 ? zero : shifted);
          own_z = earlier(own_z, v, shift, at);
          own_t = earlier(own_t, log_q, top, at);
        }
      });
      sum[k] = own_sum, mass[k] = own_mass, cross[k] = own_cross;
      first_z[k] = own_z, first_t[k] = own_t;
    }
    double sums[kRows], masses[kRows], crosses[kRows];
    totals(sum, sums);
    double total = 0;
    if constexpr (SOFT) {
      totals(mass, masses);
      totals(cross, crosses);
      Int<T> predicted[kRows], wanted[kRows];
      firsts(first_z, predicted);
      firsts(first_t, wanted);
      for (int r = 0; r < size; ++r) {
        const bool number = sums[r] == sums[r] && masses[r] == masses[r];
        *correct += number ? predicted[r] == wanted[r]
                           : first_largest(logits(r), classes) == first_largest(target(r), classes);
        total += crosses[r] + log(sums[r]) * masses[r];
      }
      return total;
    }
    double product = 1;  // of at most 16 sums, each at most the number of classes
    for (int r = 0; r < size; ++r) {
      const int64_t c = args.labels[rows[r]];
      *correct += predicts(logits(r), c, largest[r], sums[r]);
      product *= sums[r];
      total -= static_cast<T>((logits(r)[c] - largest[r]) * scale);
    }
    return total + log(product);
  }

  template <bool SOFT>
  void gradient() const {
    const T* const z_line = transpose(args.logits, transposed);
    const T* const t_line = SOFT ? transpose(args.log_target, q) : nullptr;
    T largest[W], shares[W];
    most([&](int k) { return NARROW ? z_line : logits(k); }, largest);
    LaneDoubles<T> sum[kLines], mass[kLines];
    for (int k = 0; k < kLines; ++k) {
      const T* z = NARROW ? z_line : logits(k);
      const T* t = NARROW || !SOFT ? t_line : target(k);
      T* const out = NARROW ? p : dlogits(k);
      const Vector shift = lanes(largest, k);
      LaneDoubles<T> own_sum = {}, own_mass = {};
      each([&](int64_t at, int64_t count) {
        const Vector e = exp_negative<W>((Load<W>::of(z + at) - shift) * scale);
        Store<W>::to(out + at, e);
        own_sum.add(only_fresh<T, W>(e, count));
        if constexpr (SOFT) {
          const Vector weight = exp_negative<W>(Load<W>::of(t + at));
          Store<W>::to(q + k * classes + at, weight);
          own_mass.add(only_fresh<T, W>(weight, count));
        }
      });
      sum[k] = own_sum, mass[k] = own_mass;
    }
    double sums[kRows], masses[kRows];
    totals(sum, sums);
    if constexpr (SOFT) {
      totals(mass, masses);
    }
    for (int r = 0; r < kRows; ++r) {
      shares[r] = static_cast<T>(args.scale * (SOFT ? masses[r] : 1) / sums[r]);
    }
    const T whole = static_cast<T>(args.scale);
    for (int k = 0; k < (NARROW ? 1 : size); ++k) {
      T* const out = NARROW ? p : dlogits(k);
      const Vector share = lanes(shares, k);
      each([&](int64_t at, int64_t count) {
        const Vector e = Load<W>::of(out + at);
        Vector v = e * share;
        if constexpr (SOFT) {
          v -= whole * Load<W>::of(q + k * classes + at);
        }
        Store<W>::to(out + at, stale_or<T, W>(e, v, count));
      });
    }
    finish<SOFT>(whole);
  }

  // Rows back from their transpose; minus one-hot targets.
  template <bool SOFT>
  void finish(T whole) const {
    for (int r = 0; r < size; ++r) {
      for (int64_t c = 0; NARROW && c < classes; ++c) {
        dlogits(r)[c] = p[c * W + r];
      }
      if constexpr (!SOFT) {
        dlogits(r)[args.labels[rows[r]]] -= whole;
      }
    }
  }
};

template <typename T, bool NARROW>
double kl_div_rows(const KlDivArgs& args, int64_t begin, int64_t end, int64_t* correct) {
  KlDivRows<T, NARROW> taken(args);
  double total = 0;
  for (int64_t row = begin; row < end;) {
    row = taken.take(row, end);
    if (taken.size > 0) {
      total += args.log_target == nullptr ? taken.template loss<false>(correct)
                                          : taken.template loss<true>(correct);
    }
  }
  return total;
}

template <typename T, bool NARROW>
void kl_div_gradients(const KlDivArgs& args, int64_t begin, int64_t end) {
  KlDivRows<T, NARROW> taken(args);
  if (args.mask != nullptr) {
    memset(static_cast<T*>(args.dlogits) + begin * args.classes, 0,
           (end - begin) * args.classes * sizeof(T));
  }
  for (int64_t row = begin; row < end;) {
    row = taken.take(row, end);
    if (taken.size > 0) {
      args.log_target == nullptr ? taken.template gradient<false>()
                                 : taken.template gradient<true>();
    }
  }
}

inline double kl_div(const KlDivArgs& args, int64_t begin, int64_t end, int64_t* correct) {
  if (args.dtype == Dtype::kFloat64) {
    return args.classes < kLanes<double> ? kl_div_rows<double, true>(args, begin, end, correct)
                                         : kl_div_rows<double, false>(args, begin, end, correct);
  }
  return args.classes < kLanes<float> ? kl_div_rows<float, true>(args, begin, end, correct)
                                      : kl_div_rows<float, false>(args, begin, end, correct);
}

inline void kl_div_grad(const KlDivArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == Dtype::kFloat64) {
    args.classes < kLanes<double> ? kl_div_gradients<double, true>(args, begin, end)
                                  : kl_div_gradients<double, false>(args, begin, end);
  } else {
    args.classes < kLanes<float> ? kl_div_gradients<float, true>(args, begin, end)
                                 : kl_div_gradients<float, false>(args, begin, end);
  }
}
