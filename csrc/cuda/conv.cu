// The irregular half of the fused layer: aggregation, residual mix and dropout in one kernel.

#include "sum.cuh"

namespace abkd::cuda {
template <typename T, typename I, int VEC, int NV>
struct LaunchMix {
  static const char* run(const AggregateArgs& args, void* stream) {
    return args.drop_input ? launch_op<Sum<T, I, VEC, NV, Mode::kMixDropped>>(args, stream)
                           : launch_op<Sum<T, I, VEC, NV, Mode::kMix>>(args, stream);
  }
};

const char* launch_conv(const AggregateArgs& args, void* stream) {
  return choose<LaunchMix, 2>(args, stream);
}

}  // namespace abkd::cuda
