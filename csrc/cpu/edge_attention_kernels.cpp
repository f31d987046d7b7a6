#include "edge_attention.h"

#define ABKD_KERNELS "edge_attention_kernel.h"
#include "each_isa.h"

const abkd::AttentionKernels& abkd::attention_kernels() { return ABKD_CHOOSE(attention_table); }
