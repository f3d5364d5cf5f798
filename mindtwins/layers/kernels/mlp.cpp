// The MLP of a block, with the norm before it and the residual after it, as one operator: some rows at
// a time, whose hidden numbers stay in the cache; in training they are written too. float32.

#include "gelu.h"
#include "layer_norm.h"
#include "product.h"

using namespace mindtwins;

namespace {

struct GELU {
  static Vec apply(Vec x) { return gelu(x); }
};

// Rows `begin` to `end` of x, normalized, `stride` apart.
void normalize_rows(const float* x, const float* gamma, const float* beta, float epsilon,
                    int64_t channels, int64_t begin, int64_t end, float* to, int64_t stride) {
  for (int64_t row = begin; row < end; row++, to += stride)
    normalize(x + row * channels, gamma, beta, epsilon, channels, to);
}

// Calls each(at, n) for all vectors of `count` numbers from `begin` on.
template <class Each>
void for_vectors(int64_t begin, int64_t count, const Each& each) {
  for (int64_t at = begin; at < begin + count; at += V) each(at, begin + count - at);
}

// to = the rows of x times the factor of each one's image, of which x has as many as there are factors.
void scale_rows(const float* x, const float* factors, int64_t images, int64_t rows,
                int64_t channels, int64_t begin, int64_t end, float* to, const float* residual) {
  for (int64_t row = begin; row < end; row++) {
    const float factor = factors[row * images / rows];
    for_vectors(row * channels, channels, [&](int64_t at, int64_t n) {
      Vec y = load(x + at, n) * factor;
      if (residual) y += load(residual + at, n);
      store(to + at, y, n);
    });
  }
}

}  // namespace

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
    normalize_rows(INPUT(0), INPUT(1), INPUT(2), *INPUT(7), channels, begin, end, to,
                   apart(channels));
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

// x (B, ..., C), gamma, beta, weight (hidden, C), bias, weight (C, hidden), bias, factors (B,), epsilon
// -> x + factors * the branch that is added above, and what enters GELU (B, ..., hidden), which is all
// that its gradient needs and is not to be differentiated itself
OPERATOR(mlp_training, "fffffffffff") {
  const float *x = INPUT(0), *factors = INPUT(7);
  const int64_t hidden = shapes[3][0], channels = shapes[3][1];
  if (shapes[0][ranks[0] - 1] != channels) return 1;
  const int64_t rows = product(shapes[0], ranks[0]) / channels, images = shapes[7][0];
  if (rows == 0) return 0;
  float *y = OUTPUT(9), *before = OUTPUT(10);
  const Packed up(rows_of(INPUT(3), channels), hidden, channels);
  const Packed down(rows_of(INPUT(5), hidden), channels, hidden);
  parallel(rows, share_of(rows, BLOCK), [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    Scratch normal(BLOCK * apart(channels)), between(BLOCK * apart(hidden));
    normalize_rows(x, INPUT(1), INPUT(2), *INPUT(8), channels, begin, end, normal.data(),
                   apart(channels));
    up.multiply({normal.data(), apart(channels), 1}, begin, count,
                Output<Identity>{before, hidden, hidden, INPUT(4), nullptr});
    for (int64_t row = begin; row < end; row++) {
      float* to = between.data() + (row - begin) * apart(hidden) - row * hidden;
      for_vectors(row * hidden, hidden,
                  [&](int64_t at, int64_t n) { store(to + at, gelu(load(before + at, n)), n); });
    }
    down.multiply({between.data(), apart(hidden), 1}, begin, count,
                  Output<Identity>{y, channels, channels, INPUT(6), nullptr});
    scale_rows(y, factors, images, rows, channels, begin, end, y, x);
  });
  return 0;
}

// dy, x (B, ..., C), what entered GELU, gamma, beta, weight (hidden, C), weight (C, hidden),
// factors (B,), epsilon -> of the branch, by row: what GELU gave, the normalized x, and the gradients
// by the branch itself, by what entered GELU and by the normalized x
OPERATOR(mlp_gradient, "ffffffffffffff") {
  const float *dy = INPUT(0), *x = INPUT(1), *before = INPUT(2), *factors = INPUT(7);
  const int64_t hidden = shapes[5][0], channels = shapes[5][1];
  if (shapes[1][ranks[1] - 1] != channels) return 1;
  const int64_t rows = product(shapes[1], ranks[1]) / channels, images = shapes[7][0];
  if (rows == 0) return 0;
  float *after = OUTPUT(9), *normal = OUTPUT(10), *grad_branch = OUTPUT(11);
  float *grad_before = OUTPUT(12), *grad_normal = OUTPUT(13);
  const Packed down({INPUT(6), 1, hidden}, hidden, channels);
  const Packed up({INPUT(5), 1, channels}, channels, hidden);
  parallel(rows, share_of(rows, BLOCK), [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    normalize_rows(x, INPUT(3), INPUT(4), *INPUT(8), channels, begin, end, normal + begin * channels,
                   channels);
    scale_rows(dy, factors, images, rows, channels, begin, end, grad_branch, nullptr);
    down.multiply(rows_of(grad_branch, channels).from(begin), begin, count,
                  Output<Identity>{grad_before, hidden, hidden, nullptr, nullptr});
    for_vectors(begin * hidden, count * hidden, [&](int64_t at, int64_t n) {
      const Vec number = load(before + at, n);
      store(after + at, gelu(number), n);
      store(grad_before + at, load(grad_before + at, n) * gelu_slope(number), n);
    });
    up.multiply(rows_of(grad_before, hidden).from(begin), begin, count,
                Output<Identity>{grad_normal, channels, channels, nullptr, nullptr});
  });
  return 0;
}
