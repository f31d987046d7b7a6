#define ABKD_KERNELS "extremum_kernel.h"
#include "each_isa.h"

const abkd::ExtremumKernels& abkd::extremum_kernels() { return ABKD_CHOOSE(extremum_table); }
