// What layer_pair's host code hands to its kernels. D is the sum of the teacher's widths, C that of
// the student's, T and S the numbers of layers, r the subspace width; C and r are padded with zeros
// to multiples of kPad, so that kernels see whole vectors. T below is the compute dtype.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace abkd {

constexpr int64_t kPad = 16;

inline int64_t padded(int64_t width) { return (width + kPad - 1) / kPad * kPad; }

struct LayerStates {
  const void* data;
  int64_t row;  // strides
  int64_t column;
  int64_t width;
};

// The nodes that count, and what is known of them. A group of neighbouring nodes has one set of
// totals; groups depend on the sizes alone, never on the number of threads.
struct NodeSet {
  Dtype dtype;  // of all products
  Dtype teacher_dtype;
  LayerStates teacher;       // [N, D], bfloat16, float32 or float64
  const int64_t* widths;     // [T]
  const LayerStates* state;  // [S]
  int64_t num_teacher;
  int64_t num_student;
  int64_t student_width;  // C, not padded
  const int64_t* nodes;   // [num_rows] rows of the teacher and the states, or null: all
  const void* weight;     // [num_rows] T, or null: 1
  const void* centre;     // [C] T, subtracted from the states
  int64_t num_rows;
  int64_t groups;

  int64_t first_row(int64_t group) const { return num_rows / groups * group + tail(group); }
  int64_t node(int64_t row) const { return nodes == nullptr ? row : nodes[row]; }

 private:
  int64_t tail(int64_t group) const {
    const int64_t rest = num_rows % groups;
    return group < rest ? group : rest;
  }
};

// Products of the moment form; the columns of g, k and row are padded.
struct MomentArgs {
  NodeSet set;
  const void* g;    // [C, padded C] T
  const void* k;    // [D, padded C] T, or null: no gradient of the states
  const void* row;  // [padded C] T
  double*
      totals;  // [groups, total_size]: cross [D, padded C], second [C, padded C], sum [padded C]
  int64_t total_size;
  void* dstates;  // [N, C] T
};

// The projection form; r is padded everywhere.
struct ProjectionArgs {
  NodeSet set;
  int64_t r;
  const void* teacher_map;    // [D, r] T
  const void* student_map;    // [C, r] T
  const void* student_map_t;  // [r, C] T
  const void* bias;           // [T, r] T, added to the projected teacher
  const void* attention;      // [T, S] T, negated
  const void* rho;            // [T] T
  const void* gamma;          // [S] T
  const void* u;              // [T, r] T
  const void* w;              // [S, r] T
  double scale;               // of dstates
  bool want_teacher_map;
  bool want_student;
  // [groups, total_size]: squares [T] and [S], sums [T, r] and [S, r], cross [T, S],
  // dstudent_map [C, r], dteacher_map [D, r]; the last two where wanted
  double* totals;
  int64_t total_size;
  void* dstates;  // [N, C] T
};

// Layers of maps [D, r] T, with D the sum of their widths.
struct MapsView {
  Dtype dtype;
  const void* data;
  int64_t r;
  const int64_t* widths;  // [layers]
  const int64_t* starts;  // [layers] first row
  int64_t num_layers;
};

struct RowsArgs {
  MapsView maps;
  const double* rows;  // [count, D]
  int64_t count;
  double* out;  // [count, layers, r]
};

struct ProductArgs {
  MapsView teacher;
  const double* student_map_t;  // [r, C]
  int64_t student_width;        // C
  double* products;             // [D, C]
};

// K of the moment form: -A_ij M_i N_j^T in every block ij.
struct WeighArgs {
  MapsView teacher;  // no data
  MapsView student;
  int64_t student_width;
  const double* attention;  // [T, S], scaled
  const double* products;   // [D, C]
  void* k;                  // [D, padded C] T
};

struct MomentMapsArgs {
  MapsView teacher;
  MapsView student;  // float64
  int64_t student_width;
  const double* const* second;  // T of [d_i, d_i], raw
  const double* mean;           // [D]
  const double* rest;           // [C]: mean of the states, less their centre
  const double* products;       // [D, C]
  const double* cross;          // [D, C]: sums over nodes
  double count;
  const double* attention;  // [T, S], scaled
  const double* rho;        // [T]
  const double* offset;     // [D]
  const double* u;          // [T, r]
  double* square;           // [T]
  double* inner;            // [T, S]
  void* dteacher_map;       // [D, r] T, or null
  double* cross_map;        // [T, C, r]: A_ij C_ij^T M_i, or null
};

// `scratch` functions say how many bytes a thread needs; the last argument of the others is a group
// of nodes or a teacher layer.
struct LayerPairKernels {
  int64_t (*moment_scratch)(const MomentArgs&);
  void (*moment)(const MomentArgs&, void* scratch, int64_t group);
  int64_t (*projection_scratch)(const ProjectionArgs&);
  void (*projection)(const ProjectionArgs&, void* scratch, int64_t group);
  int64_t (*rows_scratch)(const RowsArgs&);
  void (*rows)(const RowsArgs&, void* scratch, int64_t layer);
  int64_t (*products_scratch)(const ProductArgs&);
  void (*products)(const ProductArgs&, void* scratch, int64_t layer);
  void (*weigh)(const WeighArgs&, int64_t layer);
  int64_t (*moment_maps_scratch)(const MomentMapsArgs&);
  void (*moment_maps)(const MomentMapsArgs&, void* scratch, int64_t layer);
};

const LayerPairKernels& layer_pair_kernels();

}  // namespace abkd
