// All kernels of one instruction set, and their table. No include guard: see simd_begin.h.
namespace abkd {
namespace ABKD_ISA {

// clang-format off: each file uses the ones before it
#include "simd.h"
#include "gemm.h"
#include "philox.h"
#include "spmm_kernel.h"
#include "layer_pair_kernel.h"
#include "column_kernel.h"
#include "narrow_kernel.h"
#include "conv_kernel.h"
#include "kl_div_kernel.h"
#include "relational_kernel.h"
// clang-format on

#define ABKD_STRING_(text) #text
#define ABKD_STRING(text) ABKD_STRING_(text)
const Kernels table = {ABKD_STRING(ABKD_ISA),
                       spmm,
                       spmm_chunk,
                       spmm_add_chunks,
                       spmm_extremum,
                       sddmm,
                       spmm_extremum_dx,
                       spmm_extremum_dvalue,
                       dropout,
                       &layer_pair_table,
                       conv,
                       transform,
                       conv_grad,
                       kl_div,
                       kl_div_grad,
                       relational};

}  // namespace ABKD_ISA
}  // namespace abkd
