// What the host code of neighbor_kl hands to its kernels.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace abkd {

// Of b = |x_i - x_j|^2: exp(-b / 2), b. Of b = <x_i, x_j>: (b + offset)^power.
enum class Similarity : int64_t { kRbf, kL2, kPower };

constexpr int64_t kNeighborPad = 64;  // elements after a row's own

// Rows [N, width] whose similarities are taken along edges.
struct NeighborRows {
  const void* x;
  int64_t width;
  int64_t ahead;  // prefetch the neighbour of the edge so many edges on; 0: none
};

// One pass over the edges, of the graph or of its transpose. T is float or double.
struct NeighborPass {
  Csr csr;
  Dtype dtype;
  int64_t edges;
  int64_t capacity;  // most edges of any row
  Similarity similarity;
  double offset;
  int64_t power;
  NeighborRows student;
  NeighborRows teacher;    // no rows where log_target is given
  const void* log_target;  // [E] T or null
  const int64_t* perm;     // [E] edge id of every transposed edge
  double scale;            // of the gradient
  void* stats;             // [N, 4] T: the largest score and the log of the sum, both sides
  void* dstudent;          // [N, width] T or null
  void* out;               // [E] T, of log_softmax
};

// Bytes that a thread works in: neighbours, six values an edge, a row of features.
constexpr int64_t neighbor_space(const NeighborPass& pass) {
  return 8 * (pass.capacity + kNeighborPad) +
         8 * (6 * (pass.capacity + kNeighborPad) + pass.student.width);
}

// Rows [begin, end) of a pass.
struct NeighborKernels {
  using Kernel = void (*)(const NeighborPass&, const ConvPartial&, int64_t begin, int64_t end);
  Kernel log_softmax;  // of the student's rows
  Kernel rows;         // partial.sums[0] += the divergences; fills stats and dstudent
  Kernel columns;      // of the transpose: adds to dstudent
};

const NeighborKernels& neighbor_kernels();

}  // namespace abkd
