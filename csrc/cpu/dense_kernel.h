// The dense halves of layers, dropout and divergences. No include guard: see each_isa.h.

// clang-format off: each file uses the ones before it
#include "simd.h"
#include "gemm.h"
#include "philox.h"
#include "exp.h"
#include "mix.h"
#include "column_kernel.h"
#include "narrow_kernel.h"
#include "sum_kernel.h"
#include "square_kernel.h"
#include "conv_kernel.h"
#include "fresh_lanes.h"
#include "lane_tree.h"
#include "kl_div_kernel.h"
#include "relational_kernel.h"
// clang-format on

const DenseKernels dense_table = {dropout,   random_words, conv,   transform,
                                  conv_grad, relational,   kl_div, kl_div_grad};
