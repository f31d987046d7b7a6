#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace abkd {
namespace {

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

const Kernels& choose() {
  const char* asked = std::getenv("ABKD_ISA");
  const bool baseline = asked != nullptr && std::strcmp(asked, "baseline") == 0;
  const bool avx2 = asked != nullptr && std::strcmp(asked, "avx2") == 0;
  if (!baseline && !avx2 && kernels_avx512() != nullptr && has_avx512()) {
    return *kernels_avx512();
  }
  if (!baseline && kernels_avx2() != nullptr && has_avx2()) {
    return *kernels_avx2();
  }
  return *kernels_baseline();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* cpu_isa() { return kernels().isa; }

}  // namespace abkd
