// Compiling one source for several instruction sets.
//
// A kernel file is included once per instruction set, inside ABKD_TARGET_BEGIN/END and its own
// namespace. Standard headers come before, and kernels use no std:: templates: an inline function
// of the library compiled with AVX-512 could otherwise be the copy the linker keeps for everyone.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
// GCC's own definitions of some intrinsics set a variable to itself.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#if !defined(__GNUC__)
#error "abkd_fast kernels use vector extensions: build with GCC >= 9 or Clang >= 12"
#endif

// Vectors wider than the instruction set's travel between functions of one file only.
#pragma GCC diagnostic ignored "-Wpsabi"

#define ABKD_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ABKD_TARGET_BEGIN(isa) \
  ABKD_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define ABKD_TARGET_END ABKD_PRAGMA(clang attribute pop)
#else
#define ABKD_TARGET_BEGIN(isa) ABKD_PRAGMA(GCC push_options) ABKD_PRAGMA(GCC target(isa))
#define ABKD_TARGET_END ABKD_PRAGMA(GCC pop_options)
#endif
