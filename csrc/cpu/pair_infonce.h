// What pair_infonce's host code hands to its kernels. A pair is one student layer u [B, d] and one
// teacher layer w [B, d]; columns of the scores u w^T go by in panels of kPanel. T below is the
// dtype.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace abkd {

constexpr int64_t kPanel = 64;      // columns of scores, and of products
constexpr int64_t kScoreRows = 24;  // rows of scores that are worked on at a time

constexpr int64_t panels_of(int64_t size) { return (size + kPanel - 1) / kPanel; }
constexpr int64_t blocks_of(int64_t rows) { return (rows + kScoreRows - 1) / kScoreRows; }

// Exponentials of a span of rows: e_vx = exp((s_vx - max_x s_vx) / temperature), less their sum
// where x = v, so that gradients are plain products: with l_v the sum and c the weight of the pair,
//   du_v = c / l_v sum_x e_vx w_x        dw_x = sum_v e_vx (c / l_v u_v)
struct PairInfonceArgs {
  Dtype dtype;        // float32 or float64
  int64_t rows;       // B
  int64_t width;      // d
  int64_t first_row;  // of the span
  int64_t span;       // its rows
  double inverse_temperature;
  double weight;        // c = weight_ij / (B temperature)
  const void* student;  // u
  const void* teacher;  // w
  void* teacher_t;      // [panels of B, d, kPanel] T: w^T
  void* exponentials;   // [blocks, panels of B, kScoreRows, kPanel] T
  void* scaled;         // [blocks, panels of d, kScoreRows, kPanel] T: c / l_v u_v; or null: no dw
  void* dstudent;       // du, or null: not wanted
  void* dteacher;       // dw
  bool add_student;     // to what is there
  bool add_teacher;
  double* losses;  // [B] log l_v - (s_vv - max_x s_vx) / temperature
};

// The last argument is a panel of columns, or a block of kScoreRows rows of the span.
struct PairInfonceKernels {
  void (*pack)(const PairInfonceArgs&, int64_t panel);
  void (*score)(const PairInfonceArgs&, void* scratch, int64_t block);  // [kScoreRows, d] T
  void (*pull)(const PairInfonceArgs&, int64_t panel);
};

const PairInfonceKernels& pair_infonce_kernels();

}  // namespace abkd
