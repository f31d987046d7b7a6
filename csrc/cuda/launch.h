// What the host code of an op hands to its kernels. No torch, no CUDA types.
#pragma once

#include <cstdint>

#include "../cpu/dispatch.h"

namespace abkd::cuda {

// abkd::DropoutMask with a seed that may lie in device memory, where a captured graph reads it
// anew on every replay.
struct Mask {
  DropoutMask constants;
  const int64_t* seed;  // null: constants.seed
};

// Aggregation over the edges of every row. `value` is in the accumulation dtype.
struct AggregateArgs {
  Csr csr;
  int64_t rows;
  int64_t edges;
  Dtype dtype;
  const void* value;  // [E] or null
  const void* x;      // [num_src, width]
  void* out;          // [rows, width]
  int64_t width;
  void* partial;      // [partial_slots(edges), width], accumulation dtype
  bool mean = false;  // spmm
  // conv: out = drop_output(scale * A drop_input(x) + residual_scale * residual)
  double scale = 1;
  const void* residual = nullptr;
  double residual_scale = 0;
  bool drop_input = false;
  bool drop_output = false;
  Mask mask = {};
  // extremum
  bool maximum = false;
  void* arg = nullptr;          // [rows, width] edge ids or null
  void* partial_arg = nullptr;  // [partial_slots(edges), width], index dtype
};

struct ElementArgs {
  Dtype dtype;
  const void* x;
  void* out;
  int64_t count;
  Mask mask;
};

// All enqueue on `stream` (a cudaStream_t) and return null, or the text of CUDA's error.
const char* launch_spmm(const AggregateArgs& args, void* stream);
const char* launch_conv(const AggregateArgs& args, void* stream);
const char* launch_extremum(const AggregateArgs& args, void* stream);
const char* launch_dropout(const ElementArgs& args, void* stream);

}  // namespace abkd::cuda
