// The instructions every processor of the architecture has: SSE2 on x86, NEON on ARM.
#include "dispatch.h"
#include "edge_attention.h"
#include "layer_pair.h"
#include "simd_begin.h"

#define ABKD_ISA baseline
#define ABKD_VECTOR_BYTES 16
#include "kernel_table.h"
const abkd::Kernels* abkd::kernels_baseline() { return &abkd::baseline::table; }
