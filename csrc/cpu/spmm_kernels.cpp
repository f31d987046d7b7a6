#define ABKD_KERNELS "spmm_kernel.h"
#include "each_isa.h"

const abkd::SpmmKernels& abkd::spmm_kernels() { return ABKD_CHOOSE(spmm_table); }
