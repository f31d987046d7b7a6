// Divergence between rows of class scores and their targets. No include guard: see each_isa.h.

template <typename T>
inline int64_t largest(const T* row, int64_t count) {
  int64_t best = 0;
  for (int64_t c = 1; c < count; ++c) {
    best = row[c] > row[best] || (row[c] != row[c] && row[best] == row[best]) ? c : best;
  }
  return best;
}

// A few rows at a time, so that one run of exponentials serves narrow rows.
template <typename T>
struct KlDivTile {
  const KlDivArgs& args;
  const int64_t classes = args.classes;
  const int64_t most = args.classes < kKlDivTile ? kKlDivTile / args.classes : 1;
  T* const shifted = static_cast<T*>(args.scratch);  // (z - max) / temperature
  T* const p = shifted + most * classes;             // its exponentials
  T* const q = p + most * classes;                   // the target's
  int64_t rows[kKlDivTile];
  int64_t size = 0;

  explicit KlDivTile(const KlDivArgs& given) : args(given) {}

  const T* logits(int64_t r) const {
    return static_cast<const T*>(args.logits) + rows[r] * classes;
  }
  const T* target(int64_t r) const {
    return static_cast<const T*>(args.log_target) + rows[r] * classes;
  }

  // Takes rows from `row` on; the first that it did not take.
  int64_t fill(int64_t row, int64_t end) {
    for (size = 0; size < most && row < end; ++row) {
      if (args.mask == nullptr || args.mask[row]) {
        rows[size++] = row;
      }
    }
    const T scale = static_cast<T>(args.inverse_temperature);
    for (int64_t r = 0; r < size; ++r) {
      const T* z = logits(r);
      const T most_likely = z[largest(z, classes)];
      for (int64_t c = 0; c < classes; ++c) {
        shifted[r * classes + c] = (z[c] - most_likely) * scale;
      }
    }
    memcpy(p, shifted, size * classes * sizeof(T));
    exp_all(p, size * classes);
    if (args.log_target != nullptr) {
      for (int64_t r = 0; r < size; ++r) {
        memcpy(q + r * classes, target(r), classes * sizeof(T));
      }
      exp_all(q, size * classes);
    }
    return row;
  }

  static double sum(const T* row, int64_t count) {
    double total = 0;
    for (int64_t c = 0; c < count; ++c) {
      total += row[c];
    }
    return total;
  }

  double loss(int64_t r, int64_t* correct) const {
    const double log_sum = log(sum(p + r * classes, classes));
    const T* s = shifted + r * classes;
    const int64_t predicted = largest(logits(r), classes);
    if (args.log_target == nullptr) {
      const int64_t label = args.labels[rows[r]];
      *correct += predicted == label;
      return log_sum - s[label];
    }
    *correct += predicted == largest(target(r), classes);
    double total = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const double q_c = q[r * classes + c];
      total += q_c == 0 ? 0 : q_c * (target(r)[c] - (s[c] - log_sum));
    }
    return total;
  }

  void gradient(int64_t r) const {
    T* out = static_cast<T*>(args.dlogits) + rows[r] * classes;
    const T* q_row = q + r * classes;
    const double mass = args.log_target == nullptr ? 1 : sum(q_row, classes);
    const double share = args.scale * mass / sum(p + r * classes, classes);
    for (int64_t c = 0; c < classes; ++c) {
      out[c] = static_cast<T>(p[r * classes + c] * share);
    }
    if (args.log_target == nullptr) {
      out[args.labels[rows[r]]] -= static_cast<T>(args.scale);
      return;
    }
    for (int64_t c = 0; c < classes; ++c) {
      out[c] -= static_cast<T>(args.scale) * q_row[c];
    }
  }
};

template <typename T>
double kl_div_rows(const KlDivArgs& args, int64_t begin, int64_t end, int64_t* correct) {
  KlDivTile<T> tile(args);
  double total = 0;
  for (int64_t row = begin; row < end;) {
    row = tile.fill(row, end);
    for (int64_t r = 0; r < tile.size; ++r) {
      total += tile.loss(r, correct);
    }
  }
  return total;
}

template <typename T>
void kl_div_gradients(const KlDivArgs& args, int64_t begin, int64_t end) {
  KlDivTile<T> tile(args);
  memset(static_cast<T*>(args.dlogits) + begin * args.classes, 0,
         (end - begin) * args.classes * sizeof(T));
  for (int64_t row = begin; row < end;) {
    row = tile.fill(row, end);
    for (int64_t r = 0; r < tile.size; ++r) {
      tile.gradient(r);
    }
  }
}

inline double kl_div(const KlDivArgs& args, int64_t begin, int64_t end, int64_t* correct) {
  return args.dtype == Dtype::kFloat64 ? kl_div_rows<double>(args, begin, end, correct)
                                       : kl_div_rows<float>(args, begin, end, correct);
}

inline void kl_div_grad(const KlDivArgs& args, int64_t begin, int64_t end) {
  return args.dtype == Dtype::kFloat64 ? kl_div_gradients<double>(args, begin, end)
                                       : kl_div_gradients<float>(args, begin, end);
}
