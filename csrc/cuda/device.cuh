// Numbers as kernels read and write them: 16-byte loads, f32 accumulation, Philox.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "launch.h"
#include "schedule.h"

namespace abkd::cuda {

template <typename T>
struct Accumulator {
  using Type = float;
};
template <>
struct Accumulator<double> {
  using Type = double;
};
template <typename T>
using Acc = typename Accumulator<T>::Type;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T narrow(Acc<T> v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// The bytes of VEC elements, one register or more.
template <int BYTES>
struct Bytes;
template <>
struct Bytes<16> {
  using Type = uint4;
};
template <>
struct Bytes<8> {
  using Type = uint2;
};
template <>
struct Bytes<4> {
  using Type = unsigned int;
};
template <>
struct Bytes<2> {
  using Type = unsigned short;
};

template <typename T, int VEC>
struct Pack {
  using Raw = typename Bytes<VEC * sizeof(T)>::Type;

  static __device__ __forceinline__ Raw load(const T* from) {
    return __ldg(reinterpret_cast<const Raw*>(from));
  }
  static __device__ __forceinline__ void unpack(Raw raw, Acc<T>* to) {
    T elements[VEC];
    memcpy(elements, &raw, sizeof(raw));
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      to[i] = widen(elements[i]);
    }
  }
  static __device__ __forceinline__ void store(T* to, const Acc<T>* from) {
    T elements[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      elements[i] = narrow<T>(from[i]);
    }
    Raw raw;
    memcpy(&raw, elements, sizeof(raw));
    *reinterpret_cast<Raw*>(to) = raw;
  }
};

// -- dropout -------------------------------------------------------------------------------

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011).
__device__ __forceinline__ void philox(const Mask& mask, uint64_t key, uint64_t counter,
                                       uint32_t (&words)[4]) {
  words[0] = static_cast<uint32_t>(counter);
  words[1] = static_cast<uint32_t>(counter >> 32);
  words[2] = mask.constants.layer;
  words[3] = mask.constants.step;
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t even_high = __umulhi(0xD2511F53u, words[0]);
    const uint32_t even_low = 0xD2511F53u * words[0];
    const uint32_t odd_high = __umulhi(0xCD9E8D57u, words[2]);
    const uint32_t odd_low = 0xCD9E8D57u * words[2];
    words[0] = odd_high ^ words[1] ^ key0;
    words[1] = odd_low;
    words[2] = even_high ^ words[3] ^ key1;
    words[3] = even_low;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

__device__ __forceinline__ uint64_t key_of(const Mask& mask) {
  return mask.seed == nullptr ? mask.constants.seed : static_cast<uint64_t>(*mask.seed);
}

// v[i] = scale * v[i] where element first + i is kept, else 0. first is a multiple of VEC.
template <typename A, int VEC>
__device__ __forceinline__ void drop(const Mask& mask, uint64_t key, int64_t first, A* v) {
  const A scale = static_cast<A>(mask.constants.scale);
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < VEC; i += 4) {
    const uint64_t element = static_cast<uint64_t>(first) + i;
    philox(mask, key, element / 4, words);
#pragma unroll
    for (int k = 0; k < (VEC < 4 ? VEC : 4); ++k) {
      uint32_t word = words[k];
      if (VEC < 4) {
        const int at = static_cast<int>(element % 4) + k;
        word = at == 0 ? words[0] : at == 1 ? words[1] : at == 2 ? words[2] : words[3];
      }
      v[i + k] = word >= mask.constants.threshold ? v[i + k] * scale : A(0);
    }
  }
}

// -- host ----------------------------------------------------------------------------------

inline const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline bool aligned(const void* address, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

}  // namespace abkd::cuda
