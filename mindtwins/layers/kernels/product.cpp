// Linear layers, with a norm before and an activation or a residual after them. float32.

#include "product.h"

#include "gelu.h"
#include "layer_norm.h"

using namespace mindtwins;

namespace {

constexpr int64_t TASKS = 8;  // at least so many for a gradient, where there is enough to do
constexpr int64_t GROUP = 4 * BLOCK, RUN = 256;  // outputs and rows of a product for a gradient

// Of a longer sum so much is made at a time: its panels and rows stay in the cache.
constexpr int64_t PART = 32 * DEEP;

struct GELU {
  static Vec apply(Vec x) { return gelu(x); }
};

// dweight (columns, depth) = dy^T x and dbias, summed over the rows of dy and x: in runs of RUN
// rows, and these in chunks that are added in order, so that few channels keep all threads busy.
void weight_gradient(const float* dy, const float* x, int64_t rows, int64_t columns, int64_t depth,
                     float* dweight, float* dbias) {
  constexpr int64_t STRIDE = RUN + V;  // see `apart`
  const int64_t groups = (columns + GROUP - 1) / GROUP, runs = (rows + RUN - 1) / RUN;
  const int64_t chunks = std::min(runs, (TASKS + groups - 1) / groups);
  const int64_t size = columns * (depth + 1);
  Buffer partials(chunks * size);
  parallel(chunks * groups, 1, [&](int64_t begin, int64_t end) {
    Scratch turned(GROUP * STRIDE), panel(RUN * PANEL);
    for (int64_t task = begin; task < end; task++) {
      const int64_t chunk = task / groups, first = task % groups * GROUP;
      const int64_t count = std::min(GROUP, columns - first);
      float* weights = &partials[chunk * size + first * depth];
      float* biases = &partials[chunk * size + columns * depth + first];
      for (int64_t run = chunk * runs / chunks; run < (chunk + 1) * runs / chunks; run++) {
        const int64_t row = run * RUN, length = std::min(RUN, rows - row);
        side_by_side({dy + row * columns + first, columns, 1}, length, count,
                     round_up(length), turned.data(), STRIDE);
        for (int64_t i = 0; i < count; i++) {
          Vec total{};
          for (int64_t k = 0; k < length; k += V) total += load(turned.data() + i * STRIDE + k);
          biases[i] += sum(total);
        }
        for (int64_t column = 0; column < depth; column += PANEL) {
          pack_panel({x + row * depth + column, 1, depth}, depth - column, length, panel.data());
          multiply_panel({turned.data(), STRIDE, 1}, count, panel.data(), length,
                         Output<Identity>{weights, depth, depth, nullptr, weights}, 0, column, x);
        }
      }
    }
  });
  add_partials(partials, size, 0, columns * depth, dweight);
  add_partials(partials, size, columns * depth, columns, dbias);
}

}  // namespace

// x (..., in), weight (out, ...) of `in` numbers for each output, bias (out,) -> x w^T + bias
OPERATOR(dense, "ffff") {
  const int64_t columns = shapes[1][0], depth = product(shapes[1] + 1, ranks[1] - 1);
  if (shapes[0][ranks[0] - 1] != depth) return 1;
  const int64_t rows = product(shapes[0], ranks[0]) / depth;
  Output<Identity> output{OUTPUT(3), columns, columns, INPUT(2), nullptr};
  for (int64_t k = 0; k < depth; k += PART) {
    multiply(rows_of(INPUT(0), depth).from(0, k), rows, rows_of(INPUT(1), depth).from(0, k), columns,
             std::min(PART, depth - k), output);
    output.bias = nullptr;
    output.residual = output.data;
  }
  return 0;
}

// dy (..., out), x (..., in), weight (out, ...) -> dx, dweight, dbias
OPERATOR(dense_gradient, "ffffff") {
  const int64_t columns = shapes[2][0], depth = product(shapes[2] + 1, ranks[2] - 1);
  if (shapes[0][ranks[0] - 1] != columns || shapes[1][ranks[1] - 1] != depth) return 1;
  const int64_t rows = product(shapes[1], ranks[1]) / depth;
  multiply(rows_of(INPUT(0), columns), rows, {INPUT(2), 1, depth}, depth, columns,
           Output<Identity>{OUTPUT(3), depth, depth, nullptr, nullptr});
  weight_gradient(INPUT(0), INPUT(1), rows, columns, depth, OUTPUT(4), OUTPUT(5));
  return 0;
}

// x (..., C), gamma, beta, weight (hidden, C), bias, weight (C, hidden), bias, epsilon
// -> x + GELU(norm(x) w1^T + b1) w2^T + b2; a block of rows at a time, whose hidden numbers never
// leave the cache.
OPERATOR(mlp, "fffffffff") {
  const int64_t hidden = shapes[3][0], channels = shapes[3][1];
  if (shapes[0][ranks[0] - 1] != channels) return 1;
  const int64_t rows = product(shapes[0], ranks[0]) / channels;
  if (rows == 0) return 0;
  const Matrix first = rows_of(INPUT(3), channels), second = rows_of(INPUT(5), hidden);
  const auto normalized = [&](int64_t begin, int64_t end, float* to) {
    for (int64_t row = begin; row < end; row++, to += apart(channels))
      normalize(INPUT(0) + row * channels, INPUT(1), INPUT(2), *INPUT(7), channels, to);
  };
  const auto gelu_to = [&](float* to) {
    return Output<GELU>{to, hidden, apart(hidden), INPUT(4), nullptr};
  };
  const Output<Identity> output{OUTPUT(8), channels, channels, INPUT(6), INPUT(0)};
  if (rows <= FEW) {
    Scratch normal(rows * apart(channels)), between(rows * apart(hidden));
    parallel(rows, 16, [&](int64_t begin, int64_t end) {
      normalized(begin, end, normal.data() + begin * apart(channels));
    });
    multiply_few({normal.data(), apart(channels), 1}, rows, first, hidden, channels,
                 gelu_to(between.data()));
    multiply_few({between.data(), apart(hidden), 1}, rows, second, channels, hidden, output);
    return 0;
  }
  const Packed up(first, hidden, channels), down(second, channels, hidden);
  parallel(rows, BLOCK, [&](int64_t begin, int64_t end) {
    Scratch normal(BLOCK * apart(channels)), between(BLOCK * apart(hidden));
    normalized(begin, end, normal.data());
    up.multiply({normal.data(), apart(channels), 1}, 0, end - begin, gelu_to(between.data()));
    down.multiply({between.data(), apart(hidden), 1}, begin, end - begin, output);
  });
  return 0;
}
