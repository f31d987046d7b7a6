#include "dispatch.h"
#include "edge_attention.h"
#include "layer_pair.h"
#include "simd_begin.h"

#if defined(__x86_64__) && defined(__GNUC__)
ABKD_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define ABKD_ISA avx512
#define ABKD_VECTOR_BYTES 64
#include "kernel_table.h"
ABKD_TARGET_END
const abkd::Kernels* abkd::kernels_avx512() { return &abkd::avx512::table; }
#else
const abkd::Kernels* abkd::kernels_avx512() { return nullptr; }
#endif
