#define ABKD_KERNELS "dense_kernel.h"
#include "each_isa.h"

const abkd::DenseKernels& abkd::dense_kernels() { return ABKD_CHOOSE(dense_table); }
