// Every processor with AVX2 also has FMA and F16C.
#include "dispatch.h"
#include "edge_attention.h"
#include "layer_pair.h"
#include "simd_begin.h"

#if defined(__x86_64__) && defined(__GNUC__)
ABKD_TARGET_BEGIN("avx2,fma,f16c")
#define ABKD_ISA avx2
#define ABKD_VECTOR_BYTES 32
#include "kernel_table.h"
ABKD_TARGET_END
const abkd::Kernels* abkd::kernels_avx2() { return &abkd::avx2::table; }
#else
const abkd::Kernels* abkd::kernels_avx2() { return nullptr; }
#endif
