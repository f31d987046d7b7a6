// Dropout as other ops use it.
#pragma once

#include <cstdint>

#include "../check.h"

namespace abkd {

// Checks the arguments of ops.dropout.
DropoutMask dropout_mask(double p, const Tensor& seed, int64_t layer, int64_t step);

// Elements [0, count) of args.x to args.out, shared out over threads.
void parallel_dropout(const DropoutArgs& args, int64_t count);

}  // namespace abkd
