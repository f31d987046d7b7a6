// Compiles ABKD_KERNELS, a header without include guard, once per instruction set, each time in a
// namespace of its own: abkd::avx512, abkd::avx2, abkd::baseline. ABKD_CHOOSE(table) is then the
// table of the best that the processor has.
#include "dispatch.h"
#include "simd_begin.h"

#if defined(__x86_64__)
ABKD_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define ABKD_VECTOR_BYTES 64
namespace abkd {
namespace avx512 {
#include ABKD_KERNELS
}  // namespace avx512
}  // namespace abkd
#undef ABKD_VECTOR_BYTES
ABKD_TARGET_END

// Every processor with AVX2 also has FMA and F16C.
ABKD_TARGET_BEGIN("avx2,fma,f16c")
#define ABKD_VECTOR_BYTES 32
namespace abkd {
namespace avx2 {
#include ABKD_KERNELS
}  // namespace avx2
}  // namespace abkd
#undef ABKD_VECTOR_BYTES
ABKD_TARGET_END

#define ABKD_CHOOSE(table) \
  (isa() == Isa::kAvx512 ? avx512::table : isa() == Isa::kAvx2 ? avx2::table : baseline::table)
#else
#define ABKD_CHOOSE(table) (baseline::table)
#endif

// The instructions every processor of the architecture has: SSE2 on x86, NEON on ARM.
#define ABKD_VECTOR_BYTES 16
namespace abkd {
namespace baseline {
#include ABKD_KERNELS
}  // namespace baseline
}  // namespace abkd
#undef ABKD_VECTOR_BYTES
