// What the host code of edge attention hands to its kernels.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace abkd {

constexpr int64_t kAttentionPad = 64;    // elements after a block's own
constexpr int64_t kAttentionRows = 256;  // most rows of a block

// One pass over the edges. A is the accumulation dtype; H heads of C features. The transposed
// passes have the transpose's CSR, whose rows are sources.
struct AttentionPass {
  Csr csr;
  Dtype dtype;
  int64_t edges;
  int64_t heads;
  int64_t width;
  int64_t block;     // edges of a block of several rows
  int64_t capacity;  // most edges of any block: a row is never cut
  int64_t ahead;     // prefetch the neighbour of the edge so many edges on; 0: none
  double slope;
  const DropoutMask* mask;  // of alpha [E, H]; null: no dropout
  const int64_t* perm;      // [E] edge id of every transposed edge
  const void* x;            // [num_src, H, C]
  const void* x_dst;        // [num_dst, H, C]; GAT: null where scores need no other rows than x
  const void* att_src;      // [H, C] A; GATv2's only vector
  const void* att_dst;      // [H, C] A or null
  const void* score_src;    // [num_src, H] A
  const void* score_dst;    // [num_dst, H] A
  const void* score_edge;   // [E, H] A or null
  void* stats;              // [num_dst, 2, H] A: the largest score, 1 / the sum of exponentials
  void* out;                // [num_dst, H, C]; of `score`: [N, H] A
  const void* dout;         // [num_dst, H, C]
  void* records;            // [num_dst, 4, H] A, GAT's backward: score_dst, stats, <dout, out>
  void* coefficients;       // [E, 2, H] A, GATv2's backward: alpha with its mask, ds
  void* dscore_dst;         // [num_dst, H] A
  void* dscore_edge;        // [E, H] A or null
  bool shared;              // the destinations' scores come from x as well
  void* dx;                 // [num_src, H, C]
  void* dx_dst;             // [num_dst, H, C] or null
};

// Bytes that a thread works in; AttentionSpace says what for.
constexpr int64_t attention_space(int64_t edges, int64_t heads, int64_t width, int64_t size) {
  const int64_t values =
      3 * (edges * heads + kAttentionPad) + 3 * heads * width + (kAttentionRows + 3) * heads;
  return 8 * (edges + kAttentionPad + 2 * heads) + size * values +
         4 * (edges * heads + kAttentionPad);
}

// Rows [begin, end) of a pass; partial.sums gets the gradient of the att vectors.
struct AttentionKernels {
  using Kernel = void (*)(const AttentionPass&, const ConvPartial&, int64_t begin, int64_t end);
  Kernel score;  // of nodes
  Kernel attend;
  Kernel attend_dst;
  Kernel attend_src;  // of the transpose
};
struct AttentionV2Kernels {
  AttentionKernels::Kernel attend;
  AttentionKernels::Kernel attend_dst;
  AttentionKernels::Kernel attend_src;  // of the transpose
};

const AttentionKernels& attention_kernels();
const AttentionV2Kernels& attention_v2_kernels();

}  // namespace abkd
