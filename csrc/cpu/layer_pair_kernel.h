// layer_pair for one instruction set. No include guard: see each_isa.h.

// clang-format off: each file needs those before it
#include "simd.h"
#include "gemm.h"
#include "layer_pair_nodes.h"
#include "layer_pair_moment_kernel.h"
#include "layer_pair_score.h"
#include "layer_pair_projection_kernel.h"
#include "layer_pair_maps_kernel.h"
// clang-format on

const LayerPairKernels layer_pair_table = {
    moment_scratch, moment, projection_scratch,  projection, rows_scratch, rows, products_scratch,
    products,       weigh,  moment_maps_scratch, moment_maps};
