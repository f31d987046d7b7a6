#include "pair_infonce.h"

#define ABKD_KERNELS "pair_infonce_kernel.h"
#include "each_isa.h"

const abkd::PairInfonceKernels& abkd::pair_infonce_kernels() {
  return ABKD_CHOOSE(pair_infonce_table);
}
