// Sums over a row's edges: spmm and the aggregation of conv.
#pragma once

#include "aggregate.cuh"

namespace abkd::cuda {

enum class Mode { kSum, kMix, kMixDropped };  // spmm; conv; conv that drops what it gathers

template <typename T_, typename I_, int VEC_, int NV_, Mode MODE>
struct Sum {
  using T = T_;
  using I = I_;
  using A = Acc<T>;
  static constexpr int VEC = VEC_;
  static constexpr int NV = NV_;

  struct State {
    A sum[NV * VEC];
  };

  static __device__ __forceinline__ State nothing() {
    State state;
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      state.sum[i] = 0;
    }
    return state;
  }

  // kInFlight edges at a time: first their sources, then all their features, then the sums.
  static __device__ __forceinline__ void gather(const AggregateArgs& args, const Place& at,
                                                int64_t begin, int64_t end, int slot, int slots,
                                                State& state) {
    using Raw = typename Pack<T, VEC>::Raw;
    const I* col = static_cast<const I*>(args.csr.col);
    const A* value = static_cast<const A*>(args.value);
    const T* x = static_cast<const T*>(args.x);
    const uint64_t key = MODE == Mode::kMixDropped ? key_of(args.mask) : 0;
    state = nothing();
    for (int64_t e = begin + slot; e < end; e += int64_t{slots} * kInFlight) {
      int64_t source[kInFlight];
      A weight[kInFlight];
      Raw raw[kInFlight][NV];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const int64_t edge = e + int64_t{slots} * u;
        source[u] = edge < end ? static_cast<int64_t>(__ldcs(col + edge)) * args.width : -1;
        weight[u] = edge < end && value != nullptr ? __ldcs(value + edge) : A(1);
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
#pragma unroll
        for (int v = 0; v < NV; ++v) {
          const int64_t f = at.first + v * at.stride;
          raw[u][v] = Raw{};
          if (source[u] >= 0 && f < args.width) {
            raw[u][v] = Pack<T, VEC>::load(x + source[u] + f);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
#pragma unroll
        for (int v = 0; v < NV; ++v) {
          A features[VEC];
          Pack<T, VEC>::unpack(raw[u][v], features);
          if (MODE == Mode::kMixDropped && source[u] >= 0) {
            drop<A, VEC>(args.mask, key, source[u] + at.first + v * at.stride, features);
          }
#pragma unroll
          for (int i = 0; i < VEC; ++i) {
            state.sum[v * VEC + i] += weight[u] * features[i];
          }
        }
      }
    }
  }

  static __device__ __forceinline__ void merge(State& state, const State& other) {
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      state.sum[i] += other.sum[i];
    }
  }

  static __device__ __forceinline__ State shuffle(const State& state, int offset) {
    State other;
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      other.sum[i] = __shfl_xor_sync(0xffffffffu, state.sum[i], offset);
    }
    return other;
  }

  static __device__ __forceinline__ void finish(const AggregateArgs& args, const Place& at,
                                                int64_t row, int64_t begin, int64_t end,
                                                State& state) {
    T* out = static_cast<T*>(args.out);
#pragma unroll
    for (int v = 0; v < NV; ++v) {
      const int64_t f = at.first + v * at.stride;
      if (f >= args.width) {
        continue;
      }
      A* sum = state.sum + v * VEC;
      const int64_t element = row * args.width + f;
      if (MODE == Mode::kSum) {
        const A count = static_cast<A>(args.mean && end > begin ? end - begin : 1);
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
          sum[i] /= count;
        }
      } else {
        mix(args, element, sum);
      }
      Pack<T, VEC>::store(out + element, sum);
    }
  }

  // sum = drop_output(scale * sum + residual_scale * residual)
  static __device__ __forceinline__ void mix(const AggregateArgs& args, int64_t element, A* sum) {
    A residual[VEC] = {};
    if (args.residual != nullptr) {
      const T* from = static_cast<const T*>(args.residual) + element;
      Pack<T, VEC>::unpack(Pack<T, VEC>::load(from), residual);
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      sum[i] = static_cast<A>(args.scale) * sum[i];
      if (args.residual != nullptr) {  // 0 * infinity is not 0
        sum[i] += static_cast<A>(args.residual_scale) * residual[i];
      }
    }
    if (args.drop_output) {
      drop<A, VEC>(args.mask, key_of(args.mask), element, sum);
    }
  }

  // Partial sums are scratch of ours, 16 bytes aligned; their rows may not be.
  static __device__ __forceinline__ void save(const AggregateArgs& args, const Place& at,
                                              int64_t slot, const State& state) {
    A* partial = static_cast<A*>(args.partial) + slot * args.width;
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      const int64_t f = at.first + i / VEC * at.stride + i % VEC;
      if (f < args.width) {
        partial[f] = state.sum[i];
      }
    }
  }

  static __device__ __forceinline__ State load(const AggregateArgs& args, const Place& at,
                                               int64_t slot) {
    const A* partial = static_cast<const A*>(args.partial) + slot * args.width;
    State state = nothing();
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      const int64_t f = at.first + i / VEC * at.stride + i % VEC;
      if (f < args.width) {
        state.sum[i] = partial[f];
      }
    }
    return state;
  }
};

}  // namespace abkd::cuda
