// Linear layers. float32.

#include "product.h"

using namespace mindtwins;

namespace {

constexpr int64_t TASKS = 8;  // at least so many for a gradient, where there is enough to do
// Outputs, panels of channels, and rows of a product for a gradient: its sums stay in the second cache,
// and a panel in the first.
constexpr int64_t GROUP = 4 * BLOCK, STRIPS = 8, RUN = 2 * DEEP;

// Of a longer sum so much is made at a time: its panels and rows stay in the cache.
constexpr int64_t PART = 32 * DEEP;

// Rows of dy and x, and outputs and channels of a weight: what a part of its gradient is made of.
struct Part {
  int64_t row, rows, output, outputs, channel, channels;
};

// dweight (columns, depth) = dy^T x of a part, in runs of rows; and dbias, with its first channel.
void gradient_of_part(const float* dy, const float* x, int64_t columns, int64_t depth, Part part,
                      float* dweight, float* dbias) {
  const int64_t stride = apart(round_up(part.outputs));
  Scratch outputs(RUN * stride), panel(RUN * PANEL);
  const Matrix turned{outputs.data(), 1, stride};
  for (int64_t done = 0; done < part.rows; done += RUN) {
    const int64_t row = part.row + done, length = std::min(RUN, part.rows - done);
    side_by_side({dy + row * columns + part.output, 1, columns}, part.outputs, length,
                 round_up(part.outputs), outputs.data(), stride);
    if (part.channel == 0)
      for (int64_t i = 0; i < part.outputs; i += V) {
        const int64_t n = part.outputs - i;
        float* bias = dbias + part.output + i;
        Vec total{};
        for (int64_t k = 0; k < length;) {
          Vec few{};  // short sums, then sums of these: rounding adds up
          for (int64_t end = std::min(k + 16, length); k < end; k++)
            few += load(outputs.data() + k * stride + i);
          total += few;
        }
        store(bias, done ? load(bias, n) + total : total, n);
      }
    float* sums = dweight + part.output * depth;
    const int64_t end = part.channel + part.channels;
    const Output<Identity> output{sums, end, depth, nullptr, done ? sums : nullptr};
    for (int64_t channel = part.channel; channel < end; channel += PANEL) {
      pack_panel({x + row * depth + channel, 1, depth}, end - channel, length, panel.data());
      multiply_panel(turned, part.outputs, panel.data(), length, output, 0, channel, x);
    }
  }
}

// dweight and dbias of all. Where outputs and channels are few, rows are divided too, into chunks whose sums
// are added in order.
void gradient_of_weight(const float* dy, const float* x, int64_t rows, int64_t columns,
                        int64_t depth, float* dweight, float* dbias) {
  const int64_t groups = (columns + GROUP - 1) / GROUP, strips = panels(depth);
  const int64_t runs = (rows + RUN - 1) / RUN;
  const int64_t chunks = std::clamp<int64_t>(TASKS / (groups * strips), 1, std::max<int64_t>(runs, 1));
  // For each of these the outputs are copied again; they change no sum.
  const int64_t shares = std::clamp<int64_t>(2 * thread_count / (groups * chunks),
                                             (strips + STRIPS - 1) / STRIPS, strips);
  const int64_t size = columns * (depth + 1);
  if (rows == 0) {
    std::fill(dweight, dweight + columns * depth, 0.f);
    std::fill(dbias, dbias + columns, 0.f);
  }
  Scratch partials((chunks - 1) * size);
  const auto weights_of = [&](int64_t chunk) {
    return chunk ? partials.data() + (chunk - 1) * size : dweight;
  };
  const auto biases_of = [&](int64_t chunk) {
    return chunk ? weights_of(chunk) + columns * depth : dbias;
  };
  parallel(chunks * groups * shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t chunk = task / shares / groups, share = task % shares;
      const int64_t row = chunk * runs / chunks * RUN, output = task / shares % groups * GROUP;
      const int64_t channel = share * strips / shares * PANEL;
      const Part part{row,
                      std::min(rows, (chunk + 1) * runs / chunks * RUN) - row,
                      output,
                      std::min(GROUP, columns - output),
                      channel,
                      std::min(depth, (share + 1) * strips / shares * PANEL) - channel};
      gradient_of_part(dy, x, columns, depth, part, weights_of(chunk), biases_of(chunk));
    }
  });
  for (int64_t chunk = 1; chunk < chunks; chunk++) {
    for (int64_t i = 0; i < columns * depth; i++) dweight[i] += weights_of(chunk)[i];
    for (int64_t i = 0; i < columns; i++) dbias[i] += biases_of(chunk)[i];
  }
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
  gradient_of_weight(INPUT(0), INPUT(1), rows, columns, depth, OUTPUT(4), OUTPUT(5));
  return 0;
}

// dy (..., out), x (..., in), weight (out, ...) -> dweight, dbias
OPERATOR(weight_gradient, "fffff") {
  const int64_t columns = shapes[2][0], depth = product(shapes[2] + 1, ranks[2] - 1);
  if (shapes[0][ranks[0] - 1] != columns || shapes[1][ranks[1] - 1] != depth) return 1;
  gradient_of_weight(INPUT(0), INPUT(1), product(shapes[1], ranks[1]) / depth, columns, depth,
                     OUTPUT(3), OUTPUT(4));
  return 0;
}
