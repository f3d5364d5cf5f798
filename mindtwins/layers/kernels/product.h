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
constexpr int64_t NEAR = 1 << 15;    // numbers of panels that stay in the second cache with all else
constexpr int64_t FEW = 256;         // rows for which a panel is packed by the thread that uses it

// Element (i, k) of a matrix is data[i * row + k * step]. Of a weight with `turns` the numbers of a
// row are packed as those of a matrix (depth / turns, turns) that is transposed. It is passed by
// reference: of a copy on the stack a processor reads 16 bytes at once that were written in two parts,
// for which it waits until all that was written before is in the cache.
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
inline void side_by_side(const Matrix& w, int64_t count, int64_t depth, int64_t width, float* out,
                         int64_t stride) {
  if (w.row == 1) {
    // Each line is far from the last one, so it is asked for some lines before it is read.
    const int64_t ahead = std::max<int64_t>(2, 2 * V * PANEL / width) * w.step;
    for (int64_t k = 0; k < depth; k++)
      for (int64_t i = 0; i < width; i += V) {
        const float* at = w.data + k * w.step + i;
        __builtin_prefetch(at + ahead);
        store(out + k * stride + i, i < count ? load(at, count - i) : Vec{});
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
inline void pack_panel(const Matrix& w, int64_t count, int64_t depth, float* panel) {
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

// Adds to a tile the products of x and a panel from step `begin` on, before `end`.
template <int ROWS>
[[gnu::always_inline]] inline void add_products(const Matrix& x, const float* panel,
                                                int64_t begin, int64_t end, const Ahead& ahead,
                                                Tile<ROWS>& total) {
  const float* numbers = x.data + begin * x.step;
  for (int64_t k = begin; k < end; k++, numbers += x.step) {
    __builtin_prefetch(ahead.at + k * ahead.pace);
    const Vec left = load(panel + k * PANEL), right = load(panel + k * PANEL + V);
    for (int r = 0; r < ROWS; r++) {
      const Vec number = broadcast(numbers[r * x.row]);
      total[r][0] += number * left;
      total[r][1] += number * right;
    }
  }
}

// The tile of x and a panel, given to finish(row, column, sums).
template <int ROWS, class Finish>
void multiply_tile(const Matrix& x, const float* panel, int64_t depth, const Finish& finish,
                   int64_t row, int64_t column, const Ahead& ahead) {
  float earlier[ROWS * PANEL];  // sums of all parts but the last
  int64_t part = 0;
  for (; depth - part > DEEP; part += DEEP) {
    Tile<ROWS> total = {};
    add_products(x, panel, part, part + DEEP, ahead, total);
#pragma GCC unroll 28
    for (int i = 0; i < 2 * ROWS; i++) {
      const Vec sum = total[i / 2][i % 2];
      store(earlier + i * V, part ? load(earlier + i * V) + sum : sum);
    }
  }
  Tile<ROWS> total = {};
  add_products(x, panel, part, depth, ahead, total);
  if (part)
#pragma GCC unroll 28
    for (int i = 0; i < 2 * ROWS; i++) total[i / 2][i % 2] += load(earlier + i * V);
  finish(row, column, total);
}

template <class Finish, int... ROWS>
constexpr auto tiles_of(std::integer_sequence<int, ROWS...>) {
  return std::array{multiply_tile<ROWS + 1, Finish>...};
}

inline int64_t tiles(int64_t rows) { return (rows + TILE - 1) / TILE; }

// Rows that a thread takes at a time: `most`, or fewer whole tiles so that all threads have some.
inline int64_t share_of(int64_t rows, int64_t most) {
  return std::min(most, tiles((rows + thread_count - 1) / thread_count) * TILE);
}

// x times `count` panels that follow each other, tile by tile: of almost equal size, since few rows are
// slow. A tile is multiplied with all of them before the next one, so that what is written lies together.
template <class Finish>
void multiply_panels(const Matrix& x, int64_t rows, const float* panels, int64_t count, int64_t depth,
                     const Finish& finish, int64_t row, int64_t column, const void* next) {
  static constexpr auto MULTIPLY = tiles_of<Finish>(std::make_integer_sequence<int, TILE>());
  const int64_t size = PANEL * depth, parts = tiles(rows);
  Ahead ahead{static_cast<const char*>(next), int64_t(sizeof(float)) * PANEL / parts + 1};
  for (int64_t part = 0; part < parts; part++) {
    const int64_t first = part * rows / parts, end = (part + 1) * rows / parts;
    const Matrix tile = x.from(first);
    for (int64_t p = 0; p < count; p++, ahead.at += depth * ahead.pace)
      MULTIPLY[end - first - 1](tile, panels + p * size, depth, finish, row + first,
                                column + p * PANEL, ahead);
  }
}

template <class Finish>
void multiply_panel(const Matrix& x, int64_t rows, const float* panel, int64_t depth,
                    const Finish& finish, int64_t row, int64_t column, const void* next) {
  multiply_panels(x, rows, panel, 1, depth, finish, row, column, next);
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
  void operator()(int64_t row, int64_t column, const Tile<ROWS>& sums) const {
    if (places || column + PANEL > columns) {
      Tile<ROWS> copy;  // without which all sums would go through memory
      std::memcpy(copy, sums, sizeof copy);
      write_some(row, column, copy, ROWS);
    } else if (residual) {
      write_all<true>(row * stride + column, column, sums);
    } else {
      write_all<false>(row * stride + column, column, sums);
    }
  }

 private:
  template <bool RESIDUAL, int ROWS>
  void write_all(int64_t at, int64_t column, const Tile<ROWS>& sums) const {
    const Vec left = bias ? load(bias + column) : Vec{}, right = bias ? load(bias + column + V) : Vec{};
#pragma GCC unroll 14
    for (int r = 0; r < ROWS; r++, at += stride) {
      Vec y = Activation::apply(sums[r][0] + left), z = Activation::apply(sums[r][1] + right);
      if (RESIDUAL) y += load(residual + at), z += load(residual + at + V);
      store(data + at, y);
      store(data + at + V, z);
    }
  }
  [[gnu::noinline]] void write_some(int64_t row, int64_t column, const Vec (*sums)[2],
                                    int rows) const {
    for (int half = 0; half < 2; half++) {
      const int64_t n = columns - column - half * V;
      if (n <= 0) return;
      const Vec offset = bias ? load(bias + column + half * V, n) : Vec{};
      for (int r = 0; r < rows; r++) {
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
  Packed(const Matrix& w, int64_t columns, int64_t depth)
      : columns_(columns), depth_(depth), numbers_(panels(columns) * PANEL * depth) {
    parallel(panels(columns), 4, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++)
        pack_panel(w.from(p * PANEL), columns - p * PANEL, depth,
                   numbers_.data() + p * PANEL * depth);
    });
  }
  // x times panels `begin` to `end`, for `count` rows, the first of which is number `row`.
  template <class Finish>
  void multiply(const Matrix& x, int64_t row, int64_t count, int64_t begin, int64_t end,
                const Finish& finish) const {
    const int64_t size = PANEL * depth_, side = std::max<int64_t>(1, NEAR / size);
    for (int64_t p = begin; p < end; p += side) {
      const int64_t some = std::min(side, end - p);
      multiply_panels(x, count, numbers_.data() + p * size, some, depth_, finish, row, p * PANEL,
                      numbers_.data() + (p + some) * size);
    }
  }
  template <class Finish>
  void multiply(const Matrix& x, int64_t row, int64_t count, const Finish& finish) const {
    multiply(x, row, count, 0, panels(columns_), finish);
  }

 private:
  int64_t columns_, depth_;
  Scratch numbers_;
};

// The product of few rows: each thread packs the panels that it multiplies with.
template <class Finish>
void multiply_few(const Matrix& x, int64_t rows, const Matrix& w, int64_t columns, int64_t depth,
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
  Weight(const Matrix& w, int64_t columns, int64_t depth, bool whole)
      : w_(w), columns_(columns), depth_(depth) {
    if (whole) packed_.emplace(w, columns, depth);
  }
  template <class Finish>
  void multiply(const Matrix& x, int64_t rows, const Finish& finish) const {
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
void multiply(const Matrix& x, int64_t rows, const Matrix& w, int64_t columns, int64_t depth,
              const Finish& finish) {
  if (rows > 0) Weight(w, columns, depth, rows > FEW).multiply(x, rows, finish);
}

}  // namespace mindtwins
