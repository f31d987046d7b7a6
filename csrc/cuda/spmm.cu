// Sum and mean over the edges of a row.

#include "sum.cuh"

namespace abkd::cuda {
template <typename T, typename I, int VEC, int NV>
struct LaunchSum {
  static const char* run(const AggregateArgs& args, void* stream) {
    return launch_op<Sum<T, I, VEC, NV, Mode::kSum>>(args, stream);
  }
};

const char* launch_spmm(const AggregateArgs& args, void* stream) {
  return choose<LaunchSum, 2>(args, stream);
}

}  // namespace abkd::cuda
