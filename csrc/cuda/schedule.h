// Who sums what on a GPU. Plain C++ for host and device: tests run it on the host too.
//
// A row of up to kHub edges belongs to a few lanes of a warp. A longer one, a hub, belongs to a
// whole block; beyond kPiece edges it is cut at multiples of kPiece, a block sums each piece, and a
// second kernel adds the pieces in order. Hubs are found by binary search from the edges' side:
// one probe per kHub edges, because no more than one hub can start among so few. So nothing is
// planned ahead, nothing is read back by the host, and every sum has one fixed order.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ABKD_SHARED __host__ __device__ inline
#else
#define ABKD_SHARED inline
#endif

namespace abkd::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block
constexpr int kWarps = kThreads / kWarp;
constexpr int kInFlight = 4;  // edges whose features a lane asks for at a time
constexpr int64_t kHub = 256;
constexpr int64_t kPiece = 2048;
constexpr int64_t kPerPiece = kPiece / kHub;
static_assert(kPiece % kHub == 0, "a probe must not straddle two pieces");

// Edges [begin, end) of a row that a block sums; row < 0: nothing. Its sums are final where
// slot < 0, else they go to that slot of the partial sums.
struct Piece {
  int64_t row = -1;
  int64_t begin = 0;
  int64_t end = 0;
  int64_t slot = -1;
};

ABKD_SHARED int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ABKD_SHARED int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Two slots a piece: what is left of the row that began earlier, and the row that begins inside.
ABKD_SHARED int64_t partial_slots(int64_t edges) {
  return edges > kPiece ? 2 * ceil_div(edges, kPiece) : 0;
}

// The row that owns an edge: the last one that begins at it or before.
template <typename I>
ABKD_SHARED int64_t row_of_edge(const I* rowptr, int64_t rows, int64_t edge) {
  int64_t low = 0;
  int64_t high = rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (static_cast<int64_t>(rowptr[middle]) > edge) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low - 1;
}

// The row that owns the last of edges [first, first + length), if it begins among them and has
// more than `length` edges. No other row can.
template <typename I>
ABKD_SHARED Piece long_row_starting(const I* rowptr, int64_t rows, int64_t edges, int64_t first,
                                    int64_t length) {
  Piece piece;
  if (first >= edges) {
    return piece;
  }
  const int64_t row = row_of_edge(rowptr, rows, smaller(first + length, edges) - 1);
  const int64_t begin = rowptr[row];
  const int64_t end = rowptr[row + 1];
  if (begin >= first && end - begin > length) {
    piece.row = row;
    piece.begin = begin;
    piece.end = end;
  }
  return piece;
}

// The hub that begins in the probe's kHub edges and is summed in one go.
template <typename I>
ABKD_SHARED Piece hub_at(const I* rowptr, int64_t rows, int64_t edges, int64_t probe) {
  const Piece piece = long_row_starting(rowptr, rows, edges, probe * kHub, kHub);
  return piece.end - piece.begin > kPiece ? Piece{} : piece;
}

// The row of more than kPiece edges that begins among the number-th kPiece edges.
template <typename I>
ABKD_SHARED Piece cut_row_at(const I* rowptr, int64_t rows, int64_t edges, int64_t number) {
  return long_row_starting(rowptr, rows, edges, number * kPiece, kPiece);
}

// What the number-th kPiece edges hold of a row that began before them, or with them.
template <typename I>
ABKD_SHARED Piece tail_at(const I* rowptr, int64_t rows, int64_t edges, int64_t number) {
  Piece piece;
  const int64_t first = number * kPiece;
  if (first >= edges) {
    return piece;
  }
  const int64_t row = row_of_edge(rowptr, rows, first);
  const int64_t end = rowptr[row + 1];
  if (end - static_cast<int64_t>(rowptr[row]) > kPiece) {
    piece.row = row;
    piece.begin = first;
    piece.end = smaller(first + kPiece, end);
    piece.slot = 2 * number;
  }
  return piece;
}

// What they hold of a row that begins later than their first edge.
template <typename I>
ABKD_SHARED Piece head_at(const I* rowptr, int64_t rows, int64_t edges, int64_t number) {
  Piece piece = cut_row_at(rowptr, rows, edges, number);
  if (piece.row < 0 || piece.begin == number * kPiece) {
    return Piece{};
  }
  piece.end = (number + 1) * kPiece;
  piece.slot = 2 * number + 1;
  return piece;
}

// The pieces of a cut row, in order: their number, and the slot of each.
ABKD_SHARED int64_t pieces_of(int64_t begin, int64_t end) {
  return (end - 1) / kPiece - begin / kPiece + 1;
}
ABKD_SHARED int64_t slot_of(int64_t begin, int64_t piece) {
  const int64_t slot = 2 * (begin / kPiece + piece);
  return piece == 0 && begin % kPiece != 0 ? slot + 1 : slot;
}

// How threads are laid over rows and columns.
struct Layout {
  int columns;  // lanes that share a row's columns: a power of two up to 32
  int slots;    // edges of a row that as many lanes each read at a time; columns * slots <= 32
  int64_t tiles;
  int64_t hub_blocks;
  int64_t row_blocks;
  int64_t cut_blocks;  // of the second kernel; 0: no row can be so long
};

// A lane holds `held` vectors of `vector` columns.
inline Layout layout_of(int64_t rows, int64_t edges, int64_t width, int vector, int held) {
  const int64_t vectors = ceil_div(width, vector);
  Layout at = {1, 1, 1, 0, 0, 0};
  while (at.columns < kWarp && int64_t{at.columns} * held < vectors) {
    at.columns *= 2;
  }
  while (2 * at.slots * at.columns <= kWarp && 2 * at.slots * kInFlight * rows <= edges) {
    at.slots *= 2;
  }
  at.tiles = ceil_div(vectors, int64_t{at.columns} * held);
  at.hub_blocks = edges > kHub ? ceil_div(ceil_div(edges, kHub), kWarp) : 0;
  at.row_blocks = ceil_div(rows, kThreads / (at.columns * at.slots));
  at.cut_blocks = edges > kPiece ? ceil_div(ceil_div(edges, kPiece), kWarp) : 0;
  return at;
}

}  // namespace abkd::cuda
