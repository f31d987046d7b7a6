#include "edge_attention.h"

#define ABKD_KERNELS "edge_attention_v2_kernel.h"
#include "each_isa.h"

const abkd::AttentionV2Kernels& abkd::attention_v2_kernels() {
  return ABKD_CHOOSE(attention_v2_table);
}
