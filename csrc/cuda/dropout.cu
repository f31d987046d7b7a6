// Dropout of a whole tensor, in one pass.

#include "device.cuh"

namespace abkd::cuda {
namespace {

// Four elements a thread: the words of one counter.
template <typename T>
__global__ void __launch_bounds__(kThreads) dropout_kernel(const ElementArgs args, bool vectors) {
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out);
  const uint64_t key = key_of(args.mask);
  const int64_t step = int64_t{gridDim.x} * kThreads * 4;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4; i < args.count; i += step) {
    Acc<T> v[4] = {};
    if (vectors && i + 4 <= args.count) {
      using Half = Pack<T, sizeof(T) == 8 ? 2 : 4>;  // 16 bytes at most
      constexpr int kEach = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
      for (int k = 0; k < 4; k += kEach) {
        Half::unpack(Half::load(x + i + k), v + k);
      }
      drop<Acc<T>, 4>(args.mask, key, i, v);
#pragma unroll
      for (int k = 0; k < 4; k += kEach) {
        Half::store(out + i + k, v + k);
      }
      continue;
    }
    for (int k = 0; k < 4 && i + k < args.count; ++k) {
      v[k] = widen(x[i + k]);
    }
    drop<Acc<T>, 4>(args.mask, key, i, v);
    for (int k = 0; k < 4 && i + k < args.count; ++k) {
      out[i + k] = narrow<T>(v[k]);
    }
  }
}

template <typename T>
const char* launch(const ElementArgs& args, void* on) {
  const cudaStream_t stream = static_cast<cudaStream_t>(on);
  constexpr int64_t kMostBlocks = 1 << 16;
  const int64_t blocks = smaller(ceil_div(args.count, 4 * kThreads), kMostBlocks);
  const bool vectors = aligned(args.x, 16) && aligned(args.out, 16);
  dropout_kernel<T><<<dim3(blocks), kThreads, 0, stream>>>(args, vectors);
  return last_error();
}

}  // namespace

const char* launch_dropout(const ElementArgs& args, void* stream) {
  switch (args.dtype) {
    case Dtype::kFloat32:
      return launch<float>(args, stream);
    case Dtype::kFloat64:
      return launch<double>(args, stream);
    case Dtype::kBFloat16:
      return launch<__nv_bfloat16>(args, stream);
    case Dtype::kFloat16:
      return launch<__half>(args, stream);
  }
  return "unknown dtype";
}

}  // namespace abkd::cuda
