// What the host code of an op hands to its kernels, and the table of kernels per instruction set.
#pragma once

#include <cstdint>

namespace abkd {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// CSR arrays; indices are int32, or int64 where `wide`. Offsets are computed in 64 bits always.
struct Csr {
  const void* rowptr;
  const void* col;
  bool wide;
  bool arange = false;  // no col: edge e reads row e; wide
};

// A row of more edges is summed in chunks of so many, whatever the number of threads.
constexpr int64_t kChunk = 1024;

// Bytes of a row of x in a slice of its columns.
constexpr int64_t kSlice = 256;

// How sums over rows are taken. Chosen per graph and width; changes no product, and the order of
// additions only with the graph.
struct SumSchedule {
  int64_t edges = 0;
  int64_t ahead = 0;       // prefetch the sources of edges so far on; 0: none
  bool pairs = false;      // rows are long enough for several edges at a time
  bool by_degree = false;  // many short rows and x in cache
  bool slices = false;     // columns in slices of kSlice bytes of x, each over all rows
};

// `value` is in the accumulation dtype: float, or double for double features.
struct SpmmArgs {
  Csr csr;
  Dtype dtype;
  const void* value;  // [E] or null: every edge counts 1
  const void* x;      // [num_src, width]
  void* out;          // [num_dst, width]
  void* arg;          // [num_dst, width] edge ids or null, extremum only
  int64_t width;
  bool mean;             // sum only
  bool maximum;          // extremum only
  SumSchedule schedule;  // sum only
};

struct SddmmArgs {
  Csr csr;
  Dtype dtype;
  const void* a;  // [num_dst, width]
  const void* b;  // [num_src, width]
  void* out;      // [E], accumulation dtype
  int64_t width;
  int64_t rows;
  int64_t ahead;
};

struct ExtremumDxArgs {
  Csr csr;  // the transpose: rows are sources
  Dtype dtype;
  const int64_t* perm;  // [E] edge id of every transposed edge
  const void* value;
  const void* arg;
  const void* dout;
  void* out;  // [num_src, width]
  int64_t width;
};

struct ExtremumDvalueArgs {
  Csr csr;
  Dtype dtype;
  const void* x;
  const void* arg;
  const void* dout;
  void* out;  // [E], accumulation dtype
  int64_t width;
};

// Element e of a tensor is dropped where word e % 4 of Philox4x32-10 is below `threshold`; its
// counter is (e / 4 low, e / 4 high, layer, step), its key the seed.
struct DropoutMask {
  uint64_t seed;
  uint32_t layer;
  uint32_t step;
  uint32_t threshold;
  double scale;  // of the kept elements
};

struct DropoutArgs {
  Dtype dtype;
  const void* x;
  void* out;
  DropoutMask mask;
};

// Rows that an op of the convolution keeps in cache at a time: about 64 KB of rows of
// `row_bytes`, and a multiple of every height that gemm() works in.
constexpr int64_t conv_block_rows(int64_t row_bytes) {
  const int64_t rows = (int64_t{1} << 16) / (row_bytes > 0 ? row_bytes : 1) / 48 * 48;
  return rows < 48 ? 48 : rows > 480 ? 480 : rows;
}

// s = scale * A x + residual_scale * residual;  dweight += drop(features)^T s;
// out = s weight, then bias, ReLU and column sums, or the dropout mask. float or double.
struct ConvPass {
  Csr csr;
  SumSchedule schedule;
  Dtype dtype;
  const void* value;
  const void* x;  // [num_src, width]
  int64_t width;
  double scale;
  const void* residual;  // [num_dst, width] or null
  double residual_scale;
  void* mixed;           // [num_dst, width] or null: s is not kept
  const void* features;  // [num_dst, features_width] or null
  int64_t features_width;
  const void* weight;  // [width, width_out], or null: out = s
  int64_t width_out;
  const void* bias;  // [width_out] or null
  bool relu;
  void* out;                // [num_dst, width_out] or null
  const DropoutMask* mask;  // of the features and of an out without column sums; null: no dropout
};

// The dense half of the backward where s was kept: dz = (dout + dsums) * (out > 0);
// dweight += features^T dz;  ds = dz weight_t.
struct ConvGrad {
  Dtype dtype;
  const void* dout;      // [N, width_out]
  const void* dsums;     // [width_out] or null
  const void* out;       // [N, width_out], null without ReLU
  void* dz;              // [N, width_out] or null: not kept
  const void* features;  // [N, width] or null
  const void* weight_t;  // [width_out, width]
  void* ds;              // [N, width] or null
  int64_t width;
  int64_t width_out;
};

// What one range of rows works in and adds to.
struct ConvPartial {
  void* scratch;  // conv_block_rows() of every width involved
  double* sums;   // [width_out], null: not wanted
  void* dweight;
};

// Rows s of a relation, one a pair of it and a node:
//   s = sums or means over the pair's edges, or x[gather], or x where neither is given;
//   sums += s;  dweight += features[features_rows]^T s;
//   out[out_rows] += s weight, or out = s weight + bias where there are no out_rows.
// float or double; row numbers are of the index dtype.
struct RelationalPass {
  Dtype dtype;
  Csr csr;  // of the pairs; rowptr is null where there are no edges
  SumSchedule schedule;
  const void* value;  // [E] or null
  bool mean;
  const void* gather;  // [pairs] or null
  const void* x;       // [num_src, width]
  int64_t width;
  const void* features;       // [N, features_width] or null
  const void* features_rows;  // [pairs], or null: pair i has row i
  int64_t features_width;
  const void* weight;  // [width, width_out], or null: s itself
  int64_t width_out;
  const void* bias;      // [width_out] or null
  void* out;             // [N, width_out] or null
  const void* out_rows;  // [pairs] or null
};

constexpr int64_t relational_block_rows(const RelationalPass& pass, int64_t bytes) {
  int64_t widest = pass.width > pass.width_out ? pass.width : pass.width_out;
  widest = widest > pass.features_width ? widest : pass.features_width;
  return conv_block_rows(widest * bytes);
}

// Rows of class scores against labels or against log-probabilities; rows that the mask leaves out
// count nothing. Scratch: kl_div_space() elements, for at most 16 rows of less than 16 classes and
// two of their transposes, or for 8 rows.
constexpr int64_t kl_div_space(int64_t classes) { return 3 * 16 * 16 + 8 * classes; }

struct KlDivArgs {
  Dtype dtype;             // float32 or float64
  const void* logits;      // [N, classes]
  const int64_t* labels;   // [N], or null:
  const void* log_target;  // [N, classes]
  const bool* mask;        // [N] or null
  int64_t classes;
  double inverse_temperature;
  void* scratch;
  void* dlogits;  // [N, classes], for the gradient
  double scale;   // of the gradient
};

// Each kernel fills rows [begin, end) of its output and nothing else. A chunk is edges [first,
// stop) of one row; its sums [width] are in the accumulation dtype. sddmm fills edges [first,
// stop).
struct SpmmKernels {
  void (*spmm)(const SpmmArgs&, int64_t begin, int64_t end);
  void (*spmm_chunk)(const SpmmArgs&, int64_t first, int64_t stop, void* sums);
  void (*spmm_add_chunks)(const SpmmArgs&, int64_t row, void* sums, int64_t chunks);
  void (*sddmm)(const SddmmArgs&, int64_t first, int64_t stop);
};

struct ExtremumKernels {
  void (*extremum)(const SpmmArgs&, int64_t begin, int64_t end);
  void (*dx)(const ExtremumDxArgs&, int64_t begin, int64_t end);
  void (*dvalue)(const ExtremumDvalueArgs&, int64_t begin, int64_t end);
};

struct DenseKernels {
  void (*dropout)(const DropoutArgs&, int64_t begin, int64_t end);  // elements
  void (*random_words)(const DropoutMask&, uint64_t first, int64_t count, uint32_t* words);
  void (*conv)(const ConvPass&, const ConvPartial&, int64_t begin, int64_t end);
  void (*transform)(const ConvPass&, const ConvPartial&, int64_t begin, int64_t end);
  void (*conv_grad)(const ConvGrad&, const ConvPartial&, int64_t begin, int64_t end);
  void (*relational)(const RelationalPass&, const ConvPartial&, int64_t begin, int64_t end);
  double (*kl_div)(const KlDivArgs&, int64_t begin, int64_t end, int64_t* correct);  // their sum
  void (*kl_div_grad)(const KlDivArgs&, int64_t begin, int64_t end);
};

// The best the processor has; ABKD_ISA=avx2 or baseline asks for less (tests, bug reports).
enum class Isa { kBaseline, kAvx2, kAvx512 };
Isa isa();
const char* isa_name();
bool made_by_intel();

const SpmmKernels& spmm_kernels();
const ExtremumKernels& extremum_kernels();
const DenseKernels& dense_kernels();

}  // namespace abkd
