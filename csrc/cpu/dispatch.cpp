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

Isa choose() {
  const char* asked = std::getenv("ABKD_ISA");
  const bool baseline = asked != nullptr && std::strcmp(asked, "baseline") == 0;
  const bool avx2 = asked != nullptr && std::strcmp(asked, "avx2") == 0;
  if (!baseline && !avx2 && has_avx512()) {
    return Isa::kAvx512;
  }
  return !baseline && has_avx2() ? Isa::kAvx2 : Isa::kBaseline;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

bool made_by_intel() {
#if defined(__x86_64__)
  static const bool intel = __builtin_cpu_is("intel");
  return intel;
#else
  return false;
#endif
}

const char* isa_name() {
  return isa() == Isa::kAvx512 ? "avx512" : isa() == Isa::kAvx2 ? "avx2" : "baseline";
}

}  // namespace abkd
