// Layer norm, and batch norm in two parts: the moments of a batch, and normalizing by given ones.
// float32.

#include "layer_norm.h"

using namespace mindtwins;

// ------------------------------------------------------------------------------------- layer norm

// x (..., C), gamma, beta, epsilon (1,) -> y
OPERATOR(layer_norm, "fffff") {
  const float *x = INPUT(0), *gamma = INPUT(1), *beta = INPUT(2), epsilon = *INPUT(3);
  float* y = OUTPUT(4);
  const int64_t channels = shapes[1][0];
  parallel(product(shapes[0], ranks[0]) / channels, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * channels; at < end * channels; at += channels)
      normalize(x + at, gamma, beta, epsilon, channels, y + at);
  });
  return 0;
}

// dy, x, gamma, epsilon (1,) -> dx, dgamma, dbeta
OPERATOR(layer_norm_gradient, "fffffff") {
  const float *dy = INPUT(0), *x = INPUT(1), *gamma = INPUT(2), epsilon = *INPUT(3);
  float* dx = OUTPUT(4);
  const int64_t channels = shapes[2][0], rows = product(shapes[1], ranks[1]) / channels;
  const int64_t padded = round_up(channels);
  Buffer partials((rows + ROWS - 1) / ROWS * 2 * padded);
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    float* dgamma = &partials[begin / ROWS * 2 * padded];
    float* dbeta = dgamma + padded;
    for (int64_t row = begin; row < end; row++) {
      const float *in = x + row * channels, *d = dy + row * channels;
      const Statistics s = statistics(in, channels, epsilon);
      Vec total{}, weighted{};
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c;
        const Vec normal = (load(in + c, n) - s.mean) * s.rstd, g = load(d + c, n);
        store(dgamma + c, load(dgamma + c) + g * normal);
        store(dbeta + c, load(dbeta + c) + g);
        const Vec scaled = g * load(gamma + c, n);
        total += scaled;
        weighted += scaled * normal;
      }
      const float mean = sum(total) / channels, slope = sum(weighted) / channels;
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c;
        const Vec normal = (load(in + c, n) - s.mean) * s.rstd;
        const Vec scaled = load(d + c, n) * load(gamma + c, n);
        store(dx + row * channels + c, (scaled - mean - normal * slope) * s.rstd, n);
      }
    }
  });
  add_partials(partials, 2 * padded, 0, channels, OUTPUT(5));
  add_partials(partials, 2 * padded, padded, channels, OUTPUT(6));
  return 0;
}

// ------------------------------------------------------------------------------------- batch norm

// x (N, C) -> mean and biased variance (C,)
OPERATOR(moments, "fff") {
  const float* x = INPUT(0);
  float *mean = OUTPUT(1), *variance = OUTPUT(2);
  const int64_t rows = shapes[0][0], channels = shapes[0][1];
  const auto divide = [&](float* sums) {
    for (int64_t c = 0; c < channels; c++) sums[c] /= rows;
  };
  sum_rows<1>(rows, channels, [&](int64_t row, int64_t c, Vec* terms) {
    terms[0] = load(x + row * channels + c, channels - c);
  }, {mean});
  divide(mean);
  sum_rows<1>(rows, channels, [&](int64_t row, int64_t c, Vec* terms) {
    const int64_t n = channels - c;
    const Vec centered = load(x + row * channels + c, n) - load(mean + c, n);
    terms[0] = centered * centered;
  }, {variance});
  divide(variance);
  return 0;
}

// dmean, dvariance, x, mean -> dx
OPERATOR(moments_gradient, "fffff") {
  const float *dmean = INPUT(0), *dvariance = INPUT(1), *x = INPUT(2), *mean = INPUT(3);
  float* dx = OUTPUT(4);
  const int64_t rows = shapes[2][0], channels = shapes[2][1];
  const float share = 1.f / rows;
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        const Vec centered = load(x + at, n) - load(mean + c, n);
        store(dx + at, (load(dmean + c, n) + centered * load(dvariance + c, n) * 2.f) * share, n);
      }
  });
  return 0;
}

// x (N, C), mean, scale, shift (C,) -> (x - mean) * scale + shift
OPERATOR(normalize, "fffff") {
  const float *x = INPUT(0), *mean = INPUT(1), *scale = INPUT(2), *shift = INPUT(3);
  float* y = OUTPUT(4);
  const int64_t rows = shapes[0][0], channels = shapes[0][1];
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        const Vec centered = load(x + at, n) - load(mean + c, n);
        store(y + at, centered * load(scale + c, n) + load(shift + c, n), n);
      }
  });
  return 0;
}

// dy, x, mean, scale -> dx, dmean, dscale, dshift
OPERATOR(normalize_gradient, "ffffffff") {
  const float *dy = INPUT(0), *x = INPUT(1), *mean = INPUT(2), *scale = INPUT(3);
  float *dx = OUTPUT(4), *dmean = OUTPUT(5), *dshift = OUTPUT(7);
  const int64_t rows = shapes[1][0], channels = shapes[1][1];
  sum_rows<2>(rows, channels, [&](int64_t row, int64_t c, Vec* terms) {
    const int64_t n = channels - c, at = row * channels + c;
    const Vec g = load(dy + at, n);
    store(dx + at, g * load(scale + c, n), n);
    terms[0] = g * (load(x + at, n) - load(mean + c, n));
    terms[1] = g;
  }, {OUTPUT(6), dshift});
  for (int64_t c = 0; c < channels; c++) dmean[c] = -scale[c] * dshift[c];
  return 0;
}
