// Operations on each number of tokens by itself: a bias, a bias and the exact GELU, a factor per
// sample and channel. float32.

#include "common.h"

using namespace mindtwins;

namespace {

// Phi(x), the normal distribution function, as 1 / (1 + exp(-x p(x^2))). p was fitted so that the
// error of Phi is below 3e-8 everywhere; the same coefficients are in layers/activation.py.
inline Vec normal_distribution(Vec x) {
  const Vec t = x * x;
  Vec p = broadcast(3.512342990111524e-9f);
  p = p * t - 2.645267388210844e-7f;
  p = p * t + 7.929489665848992e-6f;
  p = p * t - 1.1061239243328784e-4f;
  p = p * t - 6.518993720289579e-5f;
  p = p * t + 7.266616913011892e-2f;
  p = p * t + 1.5957698829289195f;
  return 1.f / (1.f + exponential(-x * p));
}

}  // namespace

// x (..., C), bias (C,) -> y
OPERATOR(add_bias, "fff") {
  const float *x = INPUT(0), *bias = INPUT(1);
  float* y = OUTPUT(2);
  const int64_t channels = shapes[1][0], rows = product(shapes[0], ranks[0]) / channels;
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        store(y + at, load(x + at, n) + load(bias + c, n), n);
      }
  });
  return 0;
}

// dy (..., C), bias -> dbias: the sum over all but the channels
OPERATOR(add_bias_gradient, "fff") {
  const float* dy = INPUT(0);
  const int64_t channels = shapes[1][0], rows = product(shapes[0], ranks[0]) / channels;
  sum_rows<1>(rows, channels, [&](int64_t row, int64_t c, Vec* terms) {
    terms[0] = load(dy + row * channels + c, channels - c);
  }, {OUTPUT(2)});
  return 0;
}

// x (..., C), bias (C,) -> GELU of x + bias
OPERATOR(bias_gelu, "fff") {
  const float *x = INPUT(0), *bias = INPUT(1);
  float* y = OUTPUT(2);
  const int64_t channels = shapes[1][0], rows = product(shapes[0], ranks[0]) / channels;
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        const Vec v = load(x + at, n) + load(bias + c, n);
        store(y + at, v * normal_distribution(v), n);
      }
  });
  return 0;
}

// dy, x, bias -> dx, dbias
OPERATOR(bias_gelu_gradient, "fffff") {
  const float *dy = INPUT(0), *x = INPUT(1), *bias = INPUT(2);
  float* dx = OUTPUT(3);
  const int64_t channels = shapes[2][0], rows = product(shapes[1], ranks[1]) / channels;
  sum_rows<1>(rows, channels, [&](int64_t row, int64_t c, Vec* terms) {
    const int64_t n = channels - c, at = row * channels + c;
    const Vec v = load(x + at, n) + load(bias + c, n);
    const Vec density = exponential(v * v * -0.5f) * 0.398942280f;
    terms[0] = load(dy + at, n) * (normal_distribution(v) + v * density);
    store(dx + at, terms[0], n);
  }, {OUTPUT(4)});
  return 0;
}

// x (B, ..., C), factors (B, C) -> x * factors
OPERATOR(scale, "fff") {
  const float *x = INPUT(0), *factors = INPUT(1);
  float* y = OUTPUT(2);
  const int64_t images = shapes[1][0], channels = shapes[1][1];
  const int64_t rows = product(shapes[0], ranks[0]) / channels;
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* factor = factors + row * images / rows * channels;
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        store(y + at, load(x + at, n) * load(factor + c, n), n);
      }
    }
  });
  return 0;
}
