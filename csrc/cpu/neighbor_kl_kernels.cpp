#include "neighbor_kl.h"

#define ABKD_KERNELS "neighbor_kl_kernel.h"
#include "each_isa.h"

const abkd::NeighborKernels& abkd::neighbor_kernels() { return ABKD_CHOOSE(neighbor_table); }
