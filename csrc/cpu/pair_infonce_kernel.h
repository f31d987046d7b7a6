// pair_infonce for one instruction set. No include guard: see each_isa.h.

// clang-format off: each file needs those before it
#include "simd.h"
#include "gemm.h"
#include "exp.h"
// clang-format on

constexpr int64_t kDepth = 128;  // of a product at a time: its operands stay in cache

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
void pack_panel(const PairInfonceArgs& args, int64_t panel) {
  const int64_t d = args.width;
  const int64_t first = panel * kPanel;
  const int64_t count = smaller(kPanel, args.rows - first);
  const T* w = static_cast<const T*>(args.teacher) + first * d;
  T* columns = static_cast<T*>(args.teacher_t) + panel * d * kPanel;
  for (int64_t k = 0; k < d; ++k) {
    for (int64_t x = 0; x < count; ++x) {
      columns[k * kPanel + x] = w[x * d + k];
    }
  }
}

// Up to kScoreRows rows of the span.
template <typename T>
struct ScoreBlock {
  static constexpr int W = kLanes<T>;
  using V = Vec<T, W>;

  const PairInfonceArgs& args;
  const int64_t start;  // in the span
  const int64_t count;
  const int64_t panels = panels_of(args.rows);
  const int64_t last = args.rows - (panels - 1) * kPanel;  // columns of the last panel
  T largest[kScoreRows];
  double sum[kScoreRows];

  ScoreBlock(const PairInfonceArgs& given, int64_t block)
      : args(given),
        start(block * kScoreRows),
        count(smaller(kScoreRows, given.span - block * kScoreRows)) {}

  int64_t columns(int64_t panel) const { return panel + 1 < panels ? kPanel : last; }
  T* scores(int64_t panel) const {
    return static_cast<T*>(args.exponentials) + (start * panels + panel * kScoreRows) * kPanel;
  }
  const T* rows() const {
    return static_cast<const T*>(args.student) + (args.first_row + start) * args.width;
  }
  T* diagonal(int64_t r) const {
    const int64_t x = args.first_row + start + r;
    return scores(x / kPanel) + r * kPanel + x % kPanel;
  }

  // s = u w^T, and the largest of each row.
  void multiply() {
    const int64_t d = args.width;
    V top[kScoreRows];
    for (int64_t r = 0; r < count; ++r) {
      top[r] = V{} - static_cast<T>(INFINITY);
      largest[r] = -static_cast<T>(INFINITY);
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      const T* w = static_cast<const T*>(args.teacher_t) + panel * d * kPanel;
      T* s = scores(panel);
      const int64_t n = columns(panel);
      for (int64_t k = 0; k < d; k += kDepth) {
        gemm<T>(count, n, smaller(kDepth, d - k), rows() + k, d, 1, w + k * kPanel, kPanel, s,
                kPanel, k > 0);
      }
      for (int64_t r = 0; r < count; ++r, s += kPanel) {
        int64_t x = 0;
        for (; x + W <= n; x += W) {
          const V value = Load<W>::of(s + x);
          top[r] = value > top[r] ? value : top[r];
        }
        for (; x < n; ++x) {
          largest[r] = s[x] > largest[r] ? s[x] : largest[r];
        }
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int i = 0; i < W; ++i) {
        largest[r] = top[r][i] > largest[r] ? top[r][i] : largest[r];
      }
    }
  }

  // e in place of s, its sums, losses; at most kPanel values are added up in T.
  void exponentiate() {
    const T inverse = static_cast<T>(args.inverse_temperature);
    T own[kScoreRows];
    for (int64_t r = 0; r < count; ++r) {
      own[r] = (*diagonal(r) - largest[r]) * inverse;
      sum[r] = 0;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      T* s = scores(panel);
      const int64_t n = columns(panel);
      for (int64_t r = 0; r < count; ++r, s += kPanel) {
        V total = {};
        int64_t x = 0;
        for (; x + W <= n; x += W) {
          const V e = exp_negative<W>((Load<W>::of(s + x) - largest[r]) * inverse);
          Store<W>::to(s + x, e);
          total += e;
        }
        T rest = 0;
        for (; x < n; ++x) {
          s[x] = (s[x] - largest[r]) * inverse;
          exp_all(s + x, 1);
          rest += s[x];
        }
        sum[r] += LaneSum<T, W>::of(total) + rest;
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      args.losses[args.first_row + start + r] = log(sum[r]) - own[r];
      *diagonal(r) = static_cast<T>(*diagonal(r) - sum[r]);
    }
  }

  T scale(int64_t r) const { return static_cast<T>(args.weight / sum[r]); }

  void student_gradient(T* product) const {
    const int64_t d = args.width;
    const T* w = static_cast<const T*>(args.teacher);
    for (int64_t panel = 0; panel < panels; ++panel, w += kPanel * d) {
      gemm<T>(count, d, columns(panel), scores(panel), kPanel, 1, w, d, product, d, panel > 0);
    }
    T* out = static_cast<T*>(args.dstudent) + (args.first_row + start) * d;
    for (int64_t r = 0; r < count; ++r) {
      const T factor = scale(r);
      for (int64_t k = 0; k < d; ++k) {
        const T before = args.add_student ? out[r * d + k] : 0;
        out[r * d + k] = before + factor * product[r * d + k];
      }
    }
  }

  void scale_student() const {
    const int64_t d = args.width;
    for (int64_t r = 0; r < count; ++r) {
      const T factor = scale(r);
      const T* u = rows() + r * d;
      T* out = static_cast<T*>(args.scaled) + (start * panels_of(d) + r) * kPanel;
      for (int64_t k = 0; k < d; k += kPanel, out += kScoreRows * kPanel) {
        for (int64_t i = 0; i < smaller(kPanel, d - k); ++i) {
          out[i] = factor * u[k + i];
        }
      }
    }
  }
};

template <typename T>
void score_rows(const PairInfonceArgs& args, void* scratch, int64_t block) {
  ScoreBlock<T> rows(args, block);
  rows.multiply();
  rows.exponentiate();
  if (args.dstudent != nullptr) {
    rows.student_gradient(static_cast<T*>(scratch));
  }
  if (args.scaled != nullptr) {
    rows.scale_student();
  }
}

template <typename T>
void pull_panel(const PairInfonceArgs& args, int64_t panel) {
  const int64_t d = args.width;
  const int64_t first = panel * kPanel;
  const int64_t count = smaller(kPanel, args.rows - first);
  const int64_t stride = kScoreRows * kPanel;
  const T* e = static_cast<const T*>(args.exponentials) + panel * stride;
  const T* u = static_cast<const T*>(args.scaled);
  T* out = static_cast<T*>(args.dteacher) + first * d;
  for (int64_t v = 0; v < args.span; v += kScoreRows, e += panels_of(args.rows) * stride) {
    const int64_t depth = smaller(kScoreRows, args.span - v);
    for (int64_t k = 0; k < d; k += kPanel, u += stride) {
      gemm<T>(count, smaller(kPanel, d - k), depth, e, 1, kPanel, u, kPanel, out + k, d,
              args.add_teacher || v > 0);
    }
  }
}

inline void pack(const PairInfonceArgs& args, int64_t panel) {
  args.dtype == Dtype::kFloat64 ? pack_panel<double>(args, panel) : pack_panel<float>(args, panel);
}

inline void score(const PairInfonceArgs& args, void* scratch, int64_t block) {
  args.dtype == Dtype::kFloat64 ? score_rows<double>(args, scratch, block)
                                : score_rows<float>(args, scratch, block);
}

inline void pull(const PairInfonceArgs& args, int64_t panel) {
  args.dtype == Dtype::kFloat64 ? pull_panel<double>(args, panel) : pull_panel<float>(args, panel);
}

const PairInfonceKernels pair_infonce_table = {pack, score, pull};
