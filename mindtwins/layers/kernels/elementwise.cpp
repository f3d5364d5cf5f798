// Operations on each number of tokens by itself: a bias, the exact GELU, a factor per sample
// and channel. float32.

#include "gelu.h"

using namespace mindtwins;

namespace {

// y[i] and on = at(i, n), vector by vector, the last of `n` numbers.
template <class At>
void each_vector(const int64_t* shape, int rank, float* y, const At& at) {
  parallel(product(shape, rank), ELEMENTS, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += V) store(y + i, at(i, end - i), end - i);
  });
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

// x -> GELU of x
OPERATOR(gelu, "ff") {
  each_vector(shapes[0], ranks[0], OUTPUT(1), [x = INPUT(0)](int64_t i, int64_t n) {
    return gelu(load(x + i, n));
  });
  return 0;
}

// dy, x -> dx
OPERATOR(gelu_gradient, "fff") {
  each_vector(shapes[0], ranks[0], OUTPUT(2), [dy = INPUT(0), x = INPUT(1)](int64_t i, int64_t n) {
    return load(dy + i, n) * gelu_slope(load(x + i, n));
  });
  return 0;
}

// x -> ReLU of x; NaN stays NaN, as in torch
OPERATOR(relu, "ff") {
  each_vector(shapes[0], ranks[0], OUTPUT(1), [x = INPUT(0)](int64_t i, int64_t n) {
    const Vec v = load(x + i, n);
    return v <= 0.f ? Vec{} : v;
  });
  return 0;
}

// dy, y -> dx
OPERATOR(relu_gradient, "fff") {
  each_vector(shapes[0], ranks[0], OUTPUT(2), [dy = INPUT(0), y = INPUT(1)](int64_t i, int64_t n) {
    return load(y + i, n) <= 0.f ? Vec{} : load(dy + i, n);
  });
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
