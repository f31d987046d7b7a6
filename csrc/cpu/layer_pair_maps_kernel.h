// What layer_pair computes from maps and moments alone, one layer at a time, in float64.
// No include guard: see each_isa.h.

inline int64_t widest(const MapsView& maps) {
  int64_t width = 0;
  for (int64_t i = 0; i < maps.num_layers; ++i) {
    width = maps.widths[i] > width ? maps.widths[i] : width;
  }
  return width;
}

// One layer's map in float64.
inline void load_map(const MapsView& maps, int64_t layer, double* out) {
  const int64_t first = maps.starts[layer] * maps.r;
  const int64_t size = maps.widths[layer] * maps.r;
  if (maps.dtype == Dtype::kFloat32) {
    add_to(out, static_cast<const float*>(maps.data) + first, size, true);
  } else {
    add_to(out, static_cast<const double*>(maps.data) + first, size, true);
  }
}

inline int64_t rows_scratch(const RowsArgs& args) {
  return widest(args.maps) * args.maps.r * static_cast<int64_t>(sizeof(double));
}

inline void rows(const RowsArgs& args, void* scratch, int64_t layer) {
  const MapsView& maps = args.maps;
  double* map = static_cast<double*>(scratch);
  load_map(maps, layer, map);
  const int64_t ld = maps.starts[maps.num_layers];
  gemm<double>(args.count, maps.r, maps.widths[layer], args.rows + maps.starts[layer], ld, 1, map,
               maps.r, args.out + layer * maps.r, maps.num_layers * maps.r, false);
}

inline int64_t products_scratch(const ProductArgs& args) {
  return widest(args.teacher) * args.teacher.r * static_cast<int64_t>(sizeof(double));
}

inline void products(const ProductArgs& args, void* scratch, int64_t layer) {
  const MapsView& maps = args.teacher;
  double* map = static_cast<double*>(scratch);
  load_map(maps, layer, map);
  gemm<double>(maps.widths[layer], args.student_width, maps.r, map, maps.r, 1, args.student_map_t,
               args.student_width, args.products + maps.starts[layer] * args.student_width,
               args.student_width, false);
}

template <typename T>
void weigh_layer(const WeighArgs& args, int64_t layer) {
  const MapsView& student = args.student;
  const double* attention = args.attention + layer * student.num_layers;
  const int64_t ld = padded(args.student_width);
  const int64_t start = args.teacher.starts[layer];
  for (int64_t c = start; c < start + args.teacher.widths[layer]; ++c) {
    const double* products = args.products + c * args.student_width;
    T* out = static_cast<T*>(args.k) + c * ld;
    for (int64_t j = 0; j < student.num_layers; ++j) {
      for (int64_t s = student.starts[j]; s < student.starts[j] + student.widths[j]; ++s) {
        out[s] = static_cast<T>(-attention[j] * products[s]);
      }
    }
    for (int64_t s = args.student_width; s < ld; ++s) {
      out[s] = 0;
    }
  }
}

inline void weigh(const WeighArgs& args, int64_t layer) {
  if (args.teacher.dtype == Dtype::kFloat32) {
    weigh_layer<float>(args, layer);
  } else {
    weigh_layer<double>(args, layer);
  }
}

struct MomentMapsBuffers {
  double* map;     // [d, r]
  double* second;  // [d, r]: central second moments times the map
  double* row;     // [r]: mean times the map
  double* cross;   // [d, C]: A_ij C_ij

  MomentMapsBuffers(const MomentMapsArgs& args, Scratch& scratch) {
    const int64_t width = widest(args.teacher);
    map = scratch.take<double>(width * args.teacher.r);
    second = scratch.take<double>(width * args.teacher.r);
    row = scratch.take<double>(args.teacher.r);
    cross = scratch.take<double>(width * args.student_width);
  }
};

inline double dot(const double* x, const double* y, int64_t count) {
  constexpr int W = kLanes<double>;
  Vec<double, W> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= count; i += 4 * W) {
    for (int v = 0; v < 4; ++v) {
      sum[v] += Load<W>::of(x + i + v * W) * Load<W>::of(y + i + v * W);
    }
  }
  double total = lane_sum<W>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < count; ++i) {
    total += x[i] * y[i];
  }
  return total;
}

// (second - mean^T mean) map.
inline void times_central(const double* second, const double* mean, int64_t width, int64_t r,
                          const MomentMapsBuffers& at) {
  gemm<double>(width, r, width, second, width, 1, at.map, r, at.second, r, false);
  gemm<double>(1, r, width, mean, width, 1, at.map, r, at.row, r, false);
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t q = 0; q < r; ++q) {
      at.second[c * r + q] -= mean[c] * at.row[q];
    }
  }
}

// inner_j = <M_i N_j^T, C_ij>, and A_ij C_ij; C = cross / count less the product of the means.
inline void weigh_cross(const MomentMapsArgs& args, const MomentMapsBuffers& at, int64_t layer) {
  const MapsView& student = args.student;
  const double* attention = args.attention + layer * student.num_layers;
  double* inner = args.inner + layer * student.num_layers;
  const double scale = 1 / args.count;
  memset(inner, 0, student.num_layers * sizeof(double));
  for (int64_t c = 0; c < args.teacher.widths[layer]; ++c) {
    const int64_t row = args.teacher.starts[layer] + c;
    const double* products = args.products + row * args.student_width;
    const double* sums = args.cross + row * args.student_width;
    double* out = at.cross + c * args.student_width;
    for (int64_t j = 0; j < student.num_layers; ++j) {
      for (int64_t s = student.starts[j]; s < student.starts[j] + student.widths[j]; ++s) {
        const double cross = sums[s] * scale - args.mean[row] * args.rest[s];
        inner[j] += products[s] * cross;
        out[s] = attention[j] * cross;
      }
    }
  }
}

// dM_i = rho_i C_ii M_i - sum_j A_ij C_ij N_j + offset_i^T u_i; at.second and at.cross are used up.
inline void layer_gradient(const MomentMapsArgs& args, const MomentMapsBuffers& at, int64_t layer) {
  const int64_t r = args.teacher.r;
  const int64_t width = args.teacher.widths[layer];
  const double* u = args.u + layer * r;
  const double* offset = args.offset + args.teacher.starts[layer];
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t q = 0; q < r; ++q) {
      at.second[c * r + q] = args.rho[layer] * at.second[c * r + q] + offset[c] * u[q];
    }
  }
  for (int64_t i = 0; i < width * args.student_width; ++i) {
    at.cross[i] = -at.cross[i];
  }
  gemm<double>(width, r, args.student_width, at.cross, args.student_width, 1,
               static_cast<const double*>(args.student.data), r, at.second, r, true);
}

template <typename T>
inline void narrow(const double* in, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(in[i]);
  }
}

inline void moment_maps(const MomentMapsArgs& args, void* memory, int64_t layer) {
  Scratch scratch = {memory, 0};
  const MomentMapsBuffers at(args, scratch);
  const int64_t r = args.teacher.r;
  const int64_t width = args.teacher.widths[layer];
  const int64_t start = args.teacher.starts[layer];
  load_map(args.teacher, layer, at.map);
  times_central(args.second[layer], args.mean + start, width, r, at);
  args.square[layer] = dot(at.map, at.second, width * r);
  weigh_cross(args, at, layer);
  if (args.cross_map != nullptr) {
    gemm<double>(args.student_width, r, width, at.cross, 1, args.student_width, at.map, r,
                 args.cross_map + layer * args.student_width * r, r, false);
  }
  if (args.dteacher_map == nullptr) {
    return;
  }
  layer_gradient(args, at, layer);
  if (args.teacher.dtype == Dtype::kFloat32) {
    narrow(at.second, width * r, static_cast<float*>(args.dteacher_map) + start * r);
  } else {
    narrow(at.second, width * r, static_cast<double*>(args.dteacher_map) + start * r);
  }
}

inline int64_t moment_maps_scratch(const MomentMapsArgs& args) {
  Scratch scratch = {nullptr, 0};
  MomentMapsBuffers(args, scratch);
  return scratch.used;
}
