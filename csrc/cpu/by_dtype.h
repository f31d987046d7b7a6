// One case per storage dtype. `by` expands to the call for one of them.
#pragma once

#define ABKD_BY_DTYPE(by, function, args, ...)   \
  switch ((args).dtype) {                        \
    case Dtype::kFloat32:                        \
      by(function, float, args, __VA_ARGS__);    \
      break;                                     \
    case Dtype::kFloat64:                        \
      by(function, double, args, __VA_ARGS__);   \
      break;                                     \
    case Dtype::kBFloat16:                       \
      by(function, BFloat16, args, __VA_ARGS__); \
      break;                                     \
    case Dtype::kFloat16:                        \
      by(function, Float16, args, __VA_ARGS__);  \
      break;                                     \
  }
