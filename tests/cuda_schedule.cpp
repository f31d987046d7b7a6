// csrc/cuda/schedule.h on the host, against a plain walk over all rows.

#include <cstdio>
#include <map>
#include <random>
#include <vector>

#include "schedule.h"

using namespace abkd::cuda;

namespace {

bool fail(const char* what, int64_t row) {
  std::printf("%s, row %ld\n", what, static_cast<long>(row));
  return false;
}

// Every hub is found once; the pieces of a cut row cover it in order, in slots of their own.
template <typename I>
bool check(const std::vector<I>& rowptr) {
  const int64_t rows = rowptr.size() - 1;
  const int64_t edges = rowptr.back();
  std::map<int64_t, int> whole, cut;
  std::map<int64_t, Piece> slots;
  const Layout layout = layout_of(rows, edges, 64, 4, 1);
  const int64_t probes = layout.hub_blocks * kWarp;  // as the kernel has them
  for (int64_t probe = 0; probe < probes; ++probe) {
    const Piece hub = hub_at(rowptr.data(), rows, edges, probe);
    whole[hub.row] += hub.row >= 0;
    if (probe % kPerPiece == 0) {
      const int64_t number = probe / kPerPiece;
      for (const Piece& piece : {tail_at(rowptr.data(), rows, edges, number),
                                 head_at(rowptr.data(), rows, edges, number)}) {
        if (piece.row >= 0 && !slots.emplace(piece.slot, piece).second) {
          return fail("two pieces in a slot", piece.row);
        }
        if (piece.row >= 0 && piece.slot >= partial_slots(edges)) {
          return fail("no such slot", piece.row);
        }
      }
    }
  }
  for (int64_t number = 0; number < layout.cut_blocks * kWarp; ++number) {
    const Piece row = cut_row_at(rowptr.data(), rows, edges, number);
    cut[row.row] += row.row >= 0;
  }
  size_t pieces = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = rowptr[row], end = rowptr[row + 1], degree = end - begin;
    if (whole[row] != (degree > kHub && degree <= kPiece)) {
      return fail("a hub is not found once", row);
    }
    if (cut[row] != (degree > kPiece)) {
      return fail("a cut row is not found once", row);
    }
    if (degree > kPiece) {
      int64_t at = begin;
      for (int64_t k = 0; k < pieces_of(begin, end); ++k, ++pieces) {
        const auto found = slots.find(slot_of(begin, k));
        if (found == slots.end() || found->second.row != row || found->second.begin != at) {
          return fail("a piece is missing", row);
        }
        at = found->second.end;
      }
      if (at != end) {
        return fail("the pieces do not cover the row", row);
      }
    }
    for (int64_t edge : {begin, end - 1}) {
      if (degree > 0 && row_of_edge(rowptr.data(), rows, edge) != row) {
        return fail("an edge has another row", row);
      }
    }
  }
  return pieces == slots.size() || fail("a piece of no row", -1);
}

bool check_layouts() {
  for (int64_t width : {1, 3, 4, 32, 33, 64, 100, 128, 256, 602, 4096, 100000}) {
    for (int64_t degree : {0, 1, 5, 16, 1000}) {
      for (int held : {1, 2, 4}) {
        const Layout at = layout_of(1000, degree * 1000, width, 4, held);
        const int lanes = at.columns * at.slots;
        const bool power = (at.columns & (at.columns - 1)) == 0 && (lanes & (lanes - 1)) == 0;
        const int64_t tile = int64_t{4} * at.columns * held;
        const bool covers = at.tiles * tile >= width && (at.tiles - 1) * tile < width;
        const bool all = at.row_blocks * (kThreads / lanes) >= 1000;
        if (!power || lanes > kWarp || !covers || !all) {
          return fail("a layout that leaves something out, width", width);
        }
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  std::mt19937 random(0);
  const std::vector<int64_t> degrees = {
      0,      1,          kHub - 1,   kHub,       kHub + 1, 2 * kHub,      kPiece - 1,
      kPiece, kPiece + 1, 2 * kPiece, 3 * kPiece, 17,       5 * kPiece - 3};
  bool good = check_layouts();
  for (int trial = 0; good && trial < 3000; ++trial) {
    std::vector<int32_t> narrow = {0};
    std::vector<int64_t> wide = {0};
    const int rows = 1 + random() % 40;
    for (int row = 0; row < rows; ++row) {
      const int64_t degree =
          random() % 3 == 0 ? degrees[random() % degrees.size()] : random() % (trial % 600 + 1);
      narrow.push_back(narrow.back() + degree);
      wide.push_back(wide.back() + degree);
    }
    good = check(narrow) && check(wide);
  }
  // Beyond 2^31 edges there is no array to walk, but every index must survive.
  const int64_t huge = int64_t{5} << 31;
  const std::vector<int64_t> rowptr = {0, 7, huge, huge + 3};
  const Piece tail = tail_at(rowptr.data(), 3, huge + 3, huge / kPiece - 1);
  good = good && row_of_edge(rowptr.data(), 3, huge - 1) == 1 && tail.row == 1 && tail.end == huge;
  std::printf(good ? "good\n" : "bad\n");
  return good ? 0 : 1;
}
