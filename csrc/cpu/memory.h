// Memory of results: kept when a result is freed, and handed to the next one of its size.
#pragma once

#include <cstdint>
#include <vector>

#include "../check.h"

namespace abkd {

// An uninitialised tensor that its caller fills from the first element to the last.
//
// A training step frees and asks for the same sizes over and over. Allocators give large blocks
// back to the system, so that every step writes fresh pages at the cost of a fault each; these
// blocks stay, up to a quarter of the machine's memory: beyond, the one unused longest goes back.
// Needs libtorch 2.11; before, and under sanitizers, the memory is torch's.
Tensor empty_output(const std::vector<int64_t>& sizes, ScalarType dtype);

// Bytes taken from the system, by live results and by kept blocks.
int64_t memory_reserved();

// Gives kept blocks back to the system.
void empty_cache();

}  // namespace abkd
