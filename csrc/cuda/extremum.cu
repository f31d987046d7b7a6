// Maximum and minimum over the edges of a row, and the edge that attains each. The minimum is the
// maximum of negated messages; NaN beats every number; the first edge wins ties.

#include "aggregate.cuh"

namespace abkd::cuda {
template <typename T_, typename I_, int VEC_, int NV_>
struct Extremum {
  using T = T_;
  using I = I_;
  using A = Acc<T>;
  static constexpr int VEC = VEC_;
  static constexpr int NV = NV_;
  static constexpr I kNone = static_cast<I>(~(uint64_t{1} << (8 * sizeof(I) - 1)));  // largest

  struct State {
    A best[NV * VEC];
    I edge[NV * VEC];
  };

  static __device__ __forceinline__ A lowest() { return -static_cast<A>(INFINITY); }

  static __device__ __forceinline__ State nothing(I edge = kNone) {
    State state;
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      state.best[i] = lowest();
      state.edge[i] = edge;
    }
    return state;
  }

  static __device__ __forceinline__ bool beats(A message, A best) {
    return !(message <= best) && best == best;
  }

  static __device__ __forceinline__ void gather(const AggregateArgs& args, const Place& at,
                                                int64_t begin, int64_t end, int slot, int slots,
                                                State& state) {
    using Raw = typename Pack<T, VEC>::Raw;
    const I* col = static_cast<const I*>(args.csr.col);
    const A* value = static_cast<const A*>(args.value);
    const T* x = static_cast<const T*>(args.x);
    const A sign = args.maximum ? 1 : -1;
    // The first edge wins a row of -infinities.
    state = nothing(begin + slot < end ? static_cast<I>(begin + slot) : kNone);
    for (int64_t e = begin + slot; e < end; e += int64_t{slots} * kInFlight) {
      int64_t source[kInFlight];
      A weight[kInFlight];
      Raw raw[kInFlight][NV];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const int64_t edge = e + int64_t{slots} * u;
        source[u] = edge < end ? static_cast<int64_t>(__ldcs(col + edge)) * args.width : -1;
        weight[u] = edge < end && value != nullptr ? sign * __ldcs(value + edge) : sign;
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
        const I edge = static_cast<I>(e + int64_t{slots} * u);
#pragma unroll
        for (int v = 0; v < NV; ++v) {
          A features[VEC];
          Pack<T, VEC>::unpack(raw[u][v], features);
#pragma unroll
          for (int i = 0; i < VEC; ++i) {
            const int k = v * VEC + i;
            const A message = weight[u] * features[i];
            if (source[u] >= 0 && beats(message, state.best[k])) {
              state.best[k] = message;
              state.edge[k] = edge;
            }
          }
        }
      }
    }
  }

  static __device__ __forceinline__ void merge(State& state, const State& other) {
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      const bool better = beats(other.best[i], state.best[i]);
      const bool worse = beats(state.best[i], other.best[i]);
      if (better || (!worse && other.edge[i] < state.edge[i])) {
        state.best[i] = other.best[i];
        state.edge[i] = other.edge[i];
      }
    }
  }

  static __device__ __forceinline__ State shuffle(const State& state, int offset) {
    State other;
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      other.best[i] = __shfl_xor_sync(0xffffffffu, state.best[i], offset);
      other.edge[i] = __shfl_xor_sync(0xffffffffu, state.edge[i], offset);
    }
    return other;
  }

  static __device__ __forceinline__ void finish(const AggregateArgs& args, const Place& at,
                                                int64_t row, int64_t begin, int64_t end,
                                                State& state) {
    T* out = static_cast<T*>(args.out);
    I* arg = static_cast<I*>(args.arg);
    const A sign = args.maximum ? 1 : -1;
    const bool empty = begin == end;
#pragma unroll
    for (int v = 0; v < NV; ++v) {
      const int64_t f = at.first + v * at.stride;
      if (f >= args.width) {
        continue;
      }
      A* best = state.best + v * VEC;
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        best[i] = empty ? A(0) : sign * best[i];
        if (arg != nullptr) {
          arg[row * args.width + f + i] = empty ? I(-1) : state.edge[v * VEC + i];
        }
      }
      Pack<T, VEC>::store(out + row * args.width + f, best);
    }
  }

  static __device__ __forceinline__ void save(const AggregateArgs& args, const Place& at,
                                              int64_t slot, const State& state) {
    A* best = static_cast<A*>(args.partial) + slot * args.width;
    I* edge = static_cast<I*>(args.partial_arg) + slot * args.width;
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      const int64_t f = at.first + i / VEC * at.stride + i % VEC;
      if (f < args.width) {
        best[f] = state.best[i];
        edge[f] = state.edge[i];
      }
    }
  }

  static __device__ __forceinline__ State load(const AggregateArgs& args, const Place& at,
                                               int64_t slot) {
    const A* best = static_cast<const A*>(args.partial) + slot * args.width;
    const I* edge = static_cast<const I*>(args.partial_arg) + slot * args.width;
    State state = nothing();
#pragma unroll
    for (int i = 0; i < NV * VEC; ++i) {
      const int64_t f = at.first + i / VEC * at.stride + i % VEC;
      if (f < args.width) {
        state.best[i] = best[f];
        state.edge[i] = edge[f];
      }
    }
    return state;
  }
};

template <typename T, typename I, int VEC, int NV>
struct LaunchExtremum {
  static const char* run(const AggregateArgs& args, void* stream) {
    return launch_op<Extremum<T, I, VEC, NV>>(args, stream);
  }
};

// One vector a lane: a state is twice as large as that of a sum.
const char* launch_extremum(const AggregateArgs& args, void* stream) {
  return choose<LaunchExtremum, 1>(args, stream);
}

}  // namespace abkd::cuda
