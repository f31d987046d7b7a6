// The kernels that every aggregation shares. What is kept per column, and how it is gathered,
// merged and written, is an Op (sum.cuh, extremum.cu):
//
//   using T, I; VEC, NV        types of features and indices; columns a vector, vectors a lane
//   State                      of a lane: NV * VEC columns
//   gather(args, at, begin, end, slot, slots, state)   every slots-th edge from begin + slot on
//   merge(state, other)        other holds other edges of the same row and columns
//   shuffle(state, offset)     the state of another lane
//   finish(args, at, row, begin, end, state)           write a row
//   save(args, at, slot, state) / load(args, at, slot, state)   partial results
#pragma once

#include "device.cuh"

namespace abkd::cuda {

// Blocks that must fit on a multiprocessor: with more, the wide kernels spill registers.
constexpr int kBlocks = 2;

// The columns of a lane: vector v of it begins at first + v * stride.
struct Place {
  int64_t first;
  int64_t stride;
};

template <class Op>
__device__ __forceinline__ Place place_of(const Layout& layout) {
  const int64_t stride = int64_t{layout.columns} * Op::VEC;
  const int64_t lane = threadIdx.x % layout.columns;
  return {blockIdx.y * stride * Op::NV + lane * Op::VEC, stride};
}

// Merges the slots of a warp, `lanes` apart up to `all` lanes; every lane gets the same.
template <class Op>
__device__ __forceinline__ void merge_slots(typename Op::State& state, int lanes, int all) {
  for (int offset = lanes; offset < all; offset *= 2) {
    Op::merge(state, Op::shuffle(state, offset));
  }
}

// Merges all slots of a block, warp by warp in order; true for the lanes that hold the result.
template <class Op>
__device__ bool merge_block(const Layout& layout, typename Op::State& state) {
  __shared__ typename Op::State warps[kWarps][kWarp];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  merge_slots<Op>(state, layout.columns, kWarp);
  __syncthreads();  // the states of the piece before have been read
  if (lane < layout.columns) {
    warps[warp][lane] = state;
  }
  __syncthreads();
  if (threadIdx.x >= layout.columns) {
    return false;
  }
  for (int other = 1; other < kWarps; ++other) {
    Op::merge(state, warps[other][lane]);
  }
  return true;
}

// A few lanes of a warp per row.
template <class Op>
__device__ void short_rows(const AggregateArgs& args, const Layout& layout) {
  const auto* rowptr = static_cast<const typename Op::I*>(args.csr.rowptr);
  const int lanes = layout.columns * layout.slots;
  const int64_t block = int64_t{blockIdx.x} - layout.hub_blocks;
  const int64_t row = block * (kThreads / lanes) + threadIdx.x / lanes;
  int64_t begin = 0;
  int64_t end = 0;
  if (row < args.rows) {
    begin = rowptr[row];
    end = rowptr[row + 1];
  }
  const bool mine = row < args.rows && end - begin <= kHub;
  const int slot = threadIdx.x % lanes / layout.columns;
  const Place at = place_of<Op>(layout);
  typename Op::State state;
  Op::gather(args, at, begin, mine ? end : begin, slot, layout.slots, state);
  merge_slots<Op>(state, layout.columns, lanes);  // all lanes of the warp take part
  if (mine && slot == 0) {
    Op::finish(args, at, row, begin, end, state);
  }
}

// A block for each hub, or piece of a hub. Neighbouring probes go to different blocks, because
// the pieces of one hub are neighbours.
template <class Op>
__device__ void hubs(const AggregateArgs& args, const Layout& layout) {
  const auto* rowptr = static_cast<const typename Op::I*>(args.csr.rowptr);
  __shared__ Piece found[3][kWarp];
  if (threadIdx.x < kWarp) {
    const int64_t probe = threadIdx.x * layout.hub_blocks + blockIdx.x;
    const bool first = probe % kPerPiece == 0;
    const int64_t number = probe / kPerPiece;
    found[0][threadIdx.x] = hub_at(rowptr, args.rows, args.edges, probe);
    found[1][threadIdx.x] = first ? tail_at(rowptr, args.rows, args.edges, number) : Piece{};
    found[2][threadIdx.x] = first ? head_at(rowptr, args.rows, args.edges, number) : Piece{};
  }
  __syncthreads();
  const Place at = place_of<Op>(layout);
  const int slots = kThreads / layout.columns;
  for (int i = 0; i < 3 * kWarp; ++i) {
    const Piece& piece = found[i / kWarp][i % kWarp];
    if (piece.row < 0) {
      continue;
    }
    typename Op::State state;
    Op::gather(args, at, piece.begin, piece.end, threadIdx.x / layout.columns, slots, state);
    if (!merge_block<Op>(layout, state)) {
      continue;
    }
    if (piece.slot < 0) {
      Op::finish(args, at, piece.row, piece.begin, piece.end, state);
    } else {
      Op::save(args, at, piece.slot, state);
    }
  }
}

template <class Op>
__global__ void __launch_bounds__(kThreads, kBlocks)
    aggregate_kernel(const AggregateArgs args, const Layout layout) {
  if (blockIdx.x < layout.hub_blocks) {  // first, as they take longest
    hubs<Op>(args, layout);
  } else {
    short_rows<Op>(args, layout);
  }
}

// The second stage: adds the pieces of every cut row in order.
template <class Op>
__global__ void __launch_bounds__(kThreads, kBlocks)
    join_pieces_kernel(const AggregateArgs args, const Layout layout) {
  const auto* rowptr = static_cast<const typename Op::I*>(args.csr.rowptr);
  __shared__ Piece found[kWarp];
  if (threadIdx.x < kWarp) {
    const int64_t number = threadIdx.x * layout.cut_blocks + blockIdx.x;
    found[threadIdx.x] = cut_row_at(rowptr, args.rows, args.edges, number);
  }
  __syncthreads();
  const Place at = place_of<Op>(layout);
  const int slots = kThreads / layout.columns;
  for (int i = 0; i < kWarp; ++i) {
    const Piece& row = found[i];
    if (row.row < 0) {
      continue;
    }
    typename Op::State state = Op::nothing();
    const int64_t pieces = pieces_of(row.begin, row.end);
    for (int64_t k = threadIdx.x / layout.columns; k < pieces; k += slots) {
      Op::merge(state, Op::load(args, at, slot_of(row.begin, k)));
    }
    if (merge_block<Op>(layout, state)) {
      Op::finish(args, at, row.row, row.begin, row.end, state);
    }
  }
}

template <class Op>
const char* launch_op(const AggregateArgs& args, void* on) {
  const cudaStream_t stream = static_cast<cudaStream_t>(on);
  const Layout layout = layout_of(args.rows, args.edges, args.width, Op::VEC, Op::NV);
  const dim3 grid(layout.hub_blocks + layout.row_blocks, layout.tiles);
  aggregate_kernel<Op><<<grid, kThreads, 0, stream>>>(args, layout);
  if (layout.cut_blocks > 0) {
    const dim3 cut(layout.cut_blocks, layout.tiles);
    join_pieces_kernel<Op><<<cut, kThreads, 0, stream>>>(args, layout);
  }
  return last_error();
}

// Calls Launch<T, I, VEC, NV>::run for the dtypes and the width: 16-byte vectors where width and
// addresses allow, else single columns. WIDE is how many 16-byte vectors a lane may hold. Launch
// needs a name of its own in every file, outside unnamed namespaces: GCC emits choose<Launch, WIDE>
// as one weak symbol for all of them.
template <template <typename, typename, int, int> class Launch, typename T, typename I, int WIDE>
const char* choose_width(const AggregateArgs& args, void* stream) {
  constexpr int kVector = 16 / sizeof(T);
  const bool vectors = args.width % kVector == 0 && aligned(args.x, 16) && aligned(args.out, 16) &&
                       aligned(args.residual, 16);
  if (vectors) {
    return args.width > kWarp * kVector ? Launch<T, I, kVector, WIDE>::run(args, stream)
                                        : Launch<T, I, kVector, 1>::run(args, stream);
  }
  return args.width > kWarp ? Launch<T, I, 1, 4>::run(args, stream)
                            : Launch<T, I, 1, 1>::run(args, stream);
}

template <template <typename, typename, int, int> class Launch, int WIDE>
const char* choose(const AggregateArgs& args, void* stream) {
  const bool wide = args.csr.wide;
  switch (args.dtype) {
    case Dtype::kFloat32:
      return wide ? choose_width<Launch, float, int64_t, WIDE>(args, stream)
                  : choose_width<Launch, float, int32_t, WIDE>(args, stream);
    case Dtype::kFloat64:
      return wide ? choose_width<Launch, double, int64_t, WIDE>(args, stream)
                  : choose_width<Launch, double, int32_t, WIDE>(args, stream);
    case Dtype::kBFloat16:
      return wide ? choose_width<Launch, __nv_bfloat16, int64_t, WIDE>(args, stream)
                  : choose_width<Launch, __nv_bfloat16, int32_t, WIDE>(args, stream);
    case Dtype::kFloat16:
      return wide ? choose_width<Launch, __half, int64_t, WIDE>(args, stream)
                  : choose_width<Launch, __half, int32_t, WIDE>(args, stream);
  }
  return "unknown dtype";
}

}  // namespace abkd::cuda
