#include "layer_pair.h"

#define ABKD_KERNELS "layer_pair_kernel.h"
#include "each_isa.h"

const abkd::LayerPairKernels& abkd::layer_pair_kernels() { return ABKD_CHOOSE(layer_pair_table); }
