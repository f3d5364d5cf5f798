// Products x w^T of rows of numbers with a weight, and what becomes of them before they are written.
//
// The weight's rows become panels: PANEL of them side by side, so that a step along their depth
// reads consecutive numbers. A tile of the product, TILE rows by a panel, stays in the registers
// while it is summed. Panels are packed at each call: what is kept nowhere is never out of date.

#pragma once

#include <array>
#include <optional>
#include <utility>

#include "common.h"

namespace mindtwins {

// The sums of a tile fill the registers but for two of the panel and one of x.
constexpr int TILE = V == 16 ? 14 : 6;
constexpr int64_t PANEL = 2 * V;
constexpr int64_t DEEP = 96;         // the longest sum that is made in one part: rounding adds up
constexpr int64_t BLOCK = 8 * TILE;  // rows that a thread takes, with all that is made of them
constexpr int64_t FEW = 256;         // rows for which a panel is packed by the thread that uses it

// Element (i, k) of a matrix is data[i * row + k * step]. Of a weight with `turns` the numbers of a
// row are packed as those of a matrix (depth / turns, turns) that is transposed.
struct Matrix {
  const float* data;
  int64_t row, step, turns = 1;
  // Along its rows only without `turns`.
  Matrix from(int64_t i, int64_t k = 0) const {
    return {data + i * row + k * step, row, step, turns};
  }
};

inline Matrix rows_of(const float* data, int64_t depth) { return {data, depth, 1}; }

// Distance of rows in scratch memory: a power of two apart they would meet in the cache.
inline int64_t apart(int64_t depth) { return depth + V; }

inline int64_t panels(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

template <int SIZE>
inline void swap_quarters(Vec* rows) {
  IntVec upper, lower;
  for (int lane = 0; lane < V; lane++) {
    upper[lane] = lane & SIZE ? V + lane - SIZE : lane;
    lower[lane] = lane & SIZE ? V + lane : lane + SIZE;
  }
  for (int i = 0; i < V; i++) {
    if (i & SIZE) continue;
    const Vec a = rows[i], b = rows[i + SIZE];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + SIZE] = __builtin_shuffle(a, b, lower);
  }
}

// A square of V x V numbers, by swapping ever smaller quarters.
inline void transpose(Vec* rows) {
  if constexpr (V == 16) swap_quarters<V / 2>(rows);
  swap_quarters<4>(rows);
  swap_quarters<2>(rows);
  swap_quarters<1>(rows);
}

// out[k * stride + i] = w's element (i, k) for all i < count and k < depth, and zeros for i from
// there to `width`, a multiple of V.
inline void side_by_side(Matrix w, int64_t count, int64_t depth, int64_t width, float* out,
                         int64_t stride) {
  if (w.row == 1) {
    for (int64_t k = 0; k < depth; k++) {
      __builtin_prefetch(w.data + (k + 2 * V) * w.step);  // each line is far from the last one
      for (int64_t i = 0; i < width; i += V)
        store(out + k * stride + i, i < count ? load(w.data + k * w.step + i, count - i) : Vec{});
    }
    return;
  }
  for (int64_t i = 0; i < width; i += V)
    for (int64_t k = 0; k < depth; k += V) {
      Vec square[V];
      for (int lane = 0; lane < V; lane++) {
        const float* row = w.data + (i + lane) * w.row + k;
        square[lane] = i + lane < count ? load(row, depth - k) : Vec{};
        __builtin_prefetch(row + V * w.row);
      }
      transpose(square);
      // Not divided by one: that would take as long as the square.
      const int64_t turn = w.turns == 1 ? depth : depth / w.turns;
      int64_t to = w.turns == 1 ? k : k % w.turns * turn + k / w.turns;
      for (int64_t lane = 0; lane < std::min<int64_t>(V, depth - k); lane++) {
        store(out + to * stride + i, square[lane]);
        to += to + turn < depth ? turn : turn - depth + 1;
      }
    }
}

// PANEL rows of w: depth x PANEL numbers, zeros for rows beyond `count`.
inline void pack_panel(Matrix w, int64_t count, int64_t depth, float* panel) {
  side_by_side(w, count, depth, PANEL, panel, PANEL);
}

// What will be read next: fetched from memory meanwhile, `pace` bytes with each step along a tile.
struct Ahead {
  const char* at;
  int64_t pace;
};

// Sums of a tile: rows of PANEL numbers.
template <int ROWS>
using Tile = Vec[ROWS][2];

// The tile of x and a panel, given to finish(row, column, sums).
template <int ROWS, class Finish>
void multiply_tile(Matrix x, const float* panel, int64_t depth, const Finish& finish, int64_t row,
                   int64_t column, Ahead ahead) {
  Tile<ROWS> sums = {};
  const float* numbers = x.data;
  for (int64_t part = 0; part < depth; part += DEEP) {
    Tile<ROWS> total = {};
    for (int64_t k = part; k < std::min(depth, part + DEEP); k++, numbers += x.step) {
      __builtin_prefetch(ahead.at + k * ahead.pace);
      const Vec left = load(panel + k * PANEL), right = load(panel + k * PANEL + V);
      for (int r = 0; r < ROWS; r++) {
        const Vec number = broadcast(numbers[r * x.row]);
        total[r][0] += number * left;
        total[r][1] += number * right;
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int half = 0; half < 2; half++) sums[r][half] += total[r][half];
  }
  finish(row, column, sums);
}

template <class Finish, int... ROWS>
constexpr auto tiles_of(std::integer_sequence<int, ROWS...>) {
  return std::array{multiply_tile<ROWS + 1, Finish>...};
}

inline int64_t tiles(int64_t rows) { return (rows + TILE - 1) / TILE; }

// x times a panel, tile by tile: of almost equal size, since few rows are slow.
template <class Finish>
void multiply_panel(Matrix x, int64_t count, const float* panel, int64_t depth,
                    const Finish& finish, int64_t row, int64_t column, const void* next) {
  static constexpr auto MULTIPLY = tiles_of<Finish>(std::make_integer_sequence<int, TILE>());
  const int64_t size = sizeof(float) * PANEL * depth, parts = tiles(count);
  Ahead ahead{static_cast<const char*>(next), size / (parts * depth) + 1};
  for (int64_t part = 0; part < parts; part++, ahead.at += depth * ahead.pace) {
    const int64_t first = part * count / parts, end = (part + 1) * count / parts;
    MULTIPLY[end - first - 1](x.from(first), panel, depth, finish, row + first, column, ahead);
  }
}

// -------------------------------------------------------------------------------------- what after

struct Identity {
  static Vec apply(Vec x) { return x; }
};

// Adds the bias if there is one, activates, adds a residual if there is one (which may be what is
// in its place already), and writes: in order, or each row where `places` says, none if that is -1.
template <class Activation>
struct Output {
  float* data;
  int64_t columns, stride;
  const float *bias, *residual;
  const int64_t* places = nullptr;
  template <int ROWS>
  void operator()(int64_t row, int64_t column, const Vec (&sums)[ROWS][2]) const {
    for (int half = 0; half < 2; half++) {
      const int64_t n = columns - column - half * V;
      if (n <= 0) return;
      const Vec offset = bias ? load(bias + column + half * V, n) : Vec{};
      for (int r = 0; r < ROWS; r++) {
        const int64_t place = places ? places[row + r] : row + r;
        if (place < 0) continue;
        const int64_t at = place * stride + column + half * V;
        Vec y = Activation::apply(sums[r][half] + offset);
        if (residual) y += load(residual + at, n);
        store(data + at, y, n);
      }
    }
  }
};

// --------------------------------------------------------------------------------- whole products

// A weight (columns, depth) that is packed whole, by all threads.
class Packed {
 public:
  Packed(Matrix w, int64_t columns, int64_t depth)
      : columns_(columns), depth_(depth), numbers_(panels(columns) * PANEL * depth) {
    parallel(panels(columns), 4, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++)
        pack_panel(w.from(p * PANEL), columns - p * PANEL, depth,
                   numbers_.data() + p * PANEL * depth);
    });
  }
  // x times panels `begin` to `end`, for `count` rows, the first of which is number `row`.
  template <class Finish>
  void multiply(Matrix x, int64_t row, int64_t count, int64_t begin, int64_t end,
                const Finish& finish) const {
    for (int64_t p = begin; p < end; p++) {
      const float* panel = numbers_.data() + p * PANEL * depth_;
      multiply_panel(x, count, panel, depth_, finish, row, p * PANEL, panel + PANEL * depth_);
    }
  }
  template <class Finish>
  void multiply(Matrix x, int64_t row, int64_t count, const Finish& finish) const {
    multiply(x, row, count, 0, panels(columns_), finish);
  }

 private:
  int64_t columns_, depth_;
  Scratch numbers_;
};

// The product of few rows: each thread packs the panels that it multiplies with.
template <class Finish>
void multiply_few(Matrix x, int64_t rows, Matrix w, int64_t columns, int64_t depth,
                  const Finish& finish) {
  parallel(panels(columns), 64 / PANEL, [&](int64_t begin, int64_t end) {
    Scratch panel(PANEL * depth);
    for (int64_t p = begin; p < end; p++) {
      const Matrix strip = w.from(p * PANEL);
      pack_panel(strip, columns - p * PANEL, depth, panel.data());
      multiply_panel(x, rows, panel.data(), depth, finish, 0, p * PANEL, strip.from(PANEL).data);
    }
  });
}

// A weight (columns, depth) for several products of some rows each, by all threads. With many rows
// in all it is to be packed whole.
class Weight {
 public:
  Weight(Matrix w, int64_t columns, int64_t depth, bool whole)
      : w_(w), columns_(columns), depth_(depth) {
    if (whole) packed_.emplace(w, columns, depth);
  }
  template <class Finish>
  void multiply(Matrix x, int64_t rows, const Finish& finish) const {
    if (!packed_) return multiply_few(x, rows, w_, columns_, depth_, finish);
    if (rows <= FEW)
      return parallel(panels(columns_), 64 / PANEL, [&](int64_t begin, int64_t end) {
        packed_->multiply(x, 0, rows, begin, end, finish);
      });
    parallel(rows, BLOCK, [&](int64_t begin, int64_t end) {
      packed_->multiply(x.from(begin), begin, end - begin, finish);
    });
  }

 private:
  Matrix w_;
  int64_t columns_, depth_;
  std::optional<Packed> packed_;
};

template <class Finish>
void multiply(Matrix x, int64_t rows, Matrix w, int64_t columns, int64_t depth,
              const Finish& finish) {
  if (rows > 0) Weight(w, columns, depth, rows > FEW).multiply(x, rows, finish);
}

}  // namespace mindtwins
