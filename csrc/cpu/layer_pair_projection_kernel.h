// The node pass of layer_pair's projection form. No include guard: see each_isa.h.
//
// A block of nodes goes by in panels of up to kPanelLayers teacher layers, small enough for the
// second-level cache: project, score against the projected student, form the residuals, multiply
// them back. Gradients of the maps are summed in the compute dtype over kFlushBlocks blocks, in
// float64 over the rest. Rows are scaled by the square root of their weight after projection, and
// again where a residual meets an unscaled factor.

constexpr int64_t kProjectionRows = 128;
constexpr int64_t kFlushBlocks = 4;
constexpr int64_t kPanelLayers = 4;
constexpr int64_t kPanelWidth = 512;
constexpr int64_t kProjectDepth = 128;  // rows of a map that stay in the first-level cache

template <typename T>
struct ProjectionBuffers {
  int64_t block;  // elements of a projected block of one layer
  T* root;        // [rows] square roots of the weights, or null
  T* h;           // [rows, C] states less their centre
  T* s;           // [S, rows, r]
  T* gs;          // [S, rows, r]
  T* dh;          // [rows, C]
  T* t;           // panel: [rows, d_i] layer by layer
  T* p;           // panel: [layers, rows, r]
  T* dstudent;    // [C, r]
  T* dteacher;    // [D, r]

  ProjectionBuffers(const ProjectionArgs& args, Scratch& scratch)
      : block(kProjectionRows * args.r) {
    const NodeSet& set = args.set;
    int64_t widest = kPanelWidth;
    for (int64_t i = 0; i < set.num_teacher; ++i) {
      widest = set.widths[i] > widest ? set.widths[i] : widest;
    }
    root = set.weight == nullptr ? nullptr : scratch.take<T>(kProjectionRows);
    h = scratch.take<T>(kProjectionRows * set.student_width);
    s = scratch.take<T>(set.num_student * block);
    gs = scratch.take<T>(set.num_student * block);
    dh = scratch.take<T>(kProjectionRows * set.student_width);
    t = scratch.take<T>(kProjectionRows * widest);
    p = scratch.take<T>(kPanelLayers * block);
    dstudent = scratch.take<T>(set.student_width * args.r);
    dteacher = scratch.take<T>(args.want_teacher_map ? set.teacher.width * args.r : 0);
  }
};

// One group's float64 totals, in the order that ProjectionArgs states.
struct ProjectionTotals {
  double* p_square;
  double* s_square;
  double* p_sum;
  double* s_sum;
  double* cross;
  double* dstudent;
  double* dteacher;

  ProjectionTotals(const ProjectionArgs& args, int64_t group) {
    const NodeSet& set = args.set;
    p_square = args.totals + group * args.total_size;
    s_square = p_square + set.num_teacher;
    p_sum = s_square + set.num_student;
    s_sum = p_sum + set.num_teacher * args.r;
    cross = s_sum + set.num_student * args.r;
    dstudent = cross + set.num_teacher * set.num_student;
    dteacher = dstudent + (args.want_student ? set.student_width * args.r : 0);
  }
};

// A block of nodes, where it is in its group.
struct ProjectionBlock {
  int64_t row;
  int64_t count;
  bool fresh;  // the first block since the last flush: sums start here
};

// out [count, r] += x [count, width] map [width, r].
template <typename T>
void project_rows(const T* x, int64_t count, int64_t width, const T* map, int64_t r, T* out) {
  for (int64_t k = 0; k < width; k += kProjectDepth) {
    const int64_t depth = width - k < kProjectDepth ? width - k : kProjectDepth;
    gemm<T>(count, r, depth, x + k, width, 1, map + k * r, r, out, r, true);
  }
}

// s, and gs before the teacher's part.
template <typename T>
void project_student(const ProjectionArgs& args, const ProjectionBuffers<T>& at,
                     const ProjectionTotals& totals, const ProjectionBlock& block) {
  const NodeSet& set = args.set;
  load_states(set, block.row, block.count, set.student_width, at.h);
  const T* map = static_cast<const T*>(args.student_map);
  int64_t first = 0;
  for (int64_t j = 0; j < set.num_student; ++j) {
    T* s = at.s + j * at.block;
    const int64_t width = set.state[j].width;
    gemm<T>(block.count, args.r, width, at.h + first, set.student_width, 1, map + first * args.r,
            args.r, s, args.r, false);
    scale_rows(at.root, block.count, args.r, s);
    add_sums(s, at.root, block.count, args.r, totals.s_sum + j * args.r, totals.s_square + j);
    if (args.want_student) {
      combine_rows(s, static_cast<const T*>(args.gamma)[j],
                   static_cast<const T*>(args.w) + j * args.r, at.root, block.count, args.r,
                   at.gs + j * at.block);
    }
    first += width;
  }
}

// p of the panel's layers, [layers, rows, r]; t holds their states.
template <typename T>
void project_panel(const ProjectionArgs& args, const ProjectionBuffers<T>& at,
                   const ProjectionTotals& totals, const ProjectionBlock& block, int64_t first,
                   int64_t stop, int64_t start) {
  const NodeSet& set = args.set;
  T* t = at.t;
  for (int64_t i = first; i < stop; ++i) {
    const int64_t width = set.widths[i];
    T* p = at.p + (i - first) * at.block;
    for (int64_t v = 0; v < block.count; ++v) {
      const int64_t node = set.node(block.row + v);
      load_row(set.teacher, set.teacher_dtype, node, start, width, t + v * width);
      memcpy(p + v * args.r, static_cast<const T*>(args.bias) + i * args.r, args.r * sizeof(T));
    }
    project_rows(t, block.count, width, static_cast<const T*>(args.teacher_map) + start * args.r,
                 args.r, p);
    scale_rows(at.root, block.count, args.r, p);
    add_sums(p, at.root, block.count, args.r, totals.p_sum + i * args.r, totals.p_square + i);
    t += block.count * width;
    start += width;
  }
}

// dteacher += t^T gp, with gp = rho p - A s + u in place of p.
template <typename T>
void pull_back_panel(const ProjectionArgs& args, const ProjectionBuffers<T>& at,
                     const ProjectionBlock& block, int64_t first, int64_t stop, int64_t start) {
  const NodeSet& set = args.set;
  const int64_t length = block.count * args.r;
  for (int64_t i = first; i < stop; ++i) {
    T* p = at.p + (i - first) * at.block;
    combine_rows(p, static_cast<const T*>(args.rho)[i], static_cast<const T*>(args.u) + i * args.r,
                 at.root, block.count, args.r, p);
  }
  const T* attention = static_cast<const T*>(args.attention) + first * set.num_student;
  gemm<T>(stop - first, length, set.num_student, attention, set.num_student, 1, at.s, at.block,
          at.p, at.block, true);
  const T* t = at.t;
  for (int64_t i = first; i < stop; ++i) {
    const int64_t width = set.widths[i];
    T* gp = at.p + (i - first) * at.block;
    scale_rows(at.root, block.count, args.r, gp);
    gemm<T>(width, args.r, block.count, t, 1, width, gp, args.r, at.dteacher + start * args.r,
            args.r, !block.fresh);
    t += block.count * width;
    start += width;
  }
}

// dstudent += h^T gs, dstates = scale gs N^T.
template <typename T>
void pull_back_student(const ProjectionArgs& args, const ProjectionBuffers<T>& at,
                       const ProjectionBlock& block) {
  const NodeSet& set = args.set;
  const int64_t ld = set.student_width;
  const T* map_t = static_cast<const T*>(args.student_map_t);
  int64_t first = 0;
  for (int64_t j = 0; j < set.num_student; ++j) {
    T* gs = at.gs + j * at.block;
    const int64_t width = set.state[j].width;
    scale_rows(at.root, block.count, args.r, gs);
    gemm<T>(width, args.r, block.count, at.h + first, 1, ld, gs, args.r,
            at.dstudent + first * args.r, args.r, !block.fresh);
    gemm<T>(block.count, width, args.r, gs, args.r, 1, map_t + first, ld, at.dh + first, ld, false);
    first += width;
  }
  const T scale = static_cast<T>(args.scale);
  for (int64_t v = 0; v < block.count; ++v) {
    T* out = static_cast<T*>(args.dstates) + set.node(block.row + v) * ld;
    for (int64_t i = 0; i < ld; ++i) {
      out[i] = scale * at.dh[v * ld + i];
    }
  }
}

template <typename T>
void projection_block(const ProjectionArgs& args, const ProjectionBuffers<T>& at,
                      const ProjectionTotals& totals, const ProjectionBlock& block) {
  const NodeSet& set = args.set;
  const int64_t length = block.count * args.r;
  if (at.root != nullptr) {
    const T* weight = static_cast<const T*>(set.weight) + block.row;
    for (int64_t v = 0; v < block.count; ++v) {
      at.root[v] = sizeof(T) == 4 ? __builtin_sqrtf(weight[v]) : __builtin_sqrt(weight[v]);
    }
  }
  project_student(args, at, totals, block);
  int64_t start = 0;
  for (int64_t first = 0, stop; first < set.num_teacher; first = stop) {
    int64_t width = set.widths[first];
    for (stop = first + 1; stop < set.num_teacher && stop - first < kPanelLayers &&
                           width + set.widths[stop] <= kPanelWidth;
         ++stop) {
      width += set.widths[stop];
    }
    project_panel(args, at, totals, block, first, stop, start);
    add_dots(at.p, stop - first, at.s, set.num_student, at.block, length,
             totals.cross + first * set.num_student);
    if (args.want_student) {
      const T* attention = static_cast<const T*>(args.attention) + first * set.num_student;
      gemm<T>(set.num_student, length, stop - first, attention, 1, set.num_student, at.p, at.block,
              at.gs, at.block, true);
    }
    if (args.want_teacher_map) {
      pull_back_panel(args, at, block, first, stop, start);
    }
    start += width;
  }
  if (args.want_student) {
    pull_back_student(args, at, block);
  }
}

template <typename T>
void projection_group(const ProjectionArgs& args, void* memory, int64_t group) {
  Scratch scratch = {memory, 0};
  const ProjectionBuffers<T> at(args, scratch);
  const ProjectionTotals totals(args, group);
  const int64_t begin = args.set.first_row(group);
  const int64_t end = args.set.first_row(group + 1);
  memset(totals.p_square, 0, (totals.dstudent - totals.p_square) * sizeof(double));
  bool flushed = false;
  for (int64_t row = begin, index = 0; row < end; row += kProjectionRows, ++index) {
    const int64_t count = end - row < kProjectionRows ? end - row : kProjectionRows;
    projection_block(args, at, totals, {row, count, index % kFlushBlocks == 0});
    if (index % kFlushBlocks < kFlushBlocks - 1 && row + count < end) {
      continue;
    }
    if (args.want_student) {
      add_to(totals.dstudent, at.dstudent, args.set.student_width * args.r, !flushed);
    }
    if (args.want_teacher_map) {
      add_to(totals.dteacher, at.dteacher, args.set.teacher.width * args.r, !flushed);
    }
    flushed = true;
  }
}

template <typename T>
int64_t projection_bytes(const ProjectionArgs& args) {
  Scratch scratch = {nullptr, 0};
  ProjectionBuffers<T>(args, scratch);
  return scratch.used;
}

inline int64_t projection_scratch(const ProjectionArgs& args) {
  return args.set.dtype == Dtype::kFloat32 ? projection_bytes<float>(args)
                                           : projection_bytes<double>(args);
}

inline void projection(const ProjectionArgs& args, void* scratch, int64_t group) {
  if (args.set.dtype == Dtype::kFloat32) {
    projection_group<float>(args, scratch, group);
  } else {
    projection_group<double>(args, scratch, group);
  }
}
