// What layer norm is made of.

#pragma once

#include "common.h"

namespace mindtwins {

// Of one row of x.
struct Statistics {
  float mean, rstd;
};

inline Statistics statistics(const float* x, int64_t channels, float epsilon) {
  Vec total{};
  for (int64_t c = 0; c < channels; c += V) total += load(x + c, channels - c);
  const float mean = sum(total) / channels;
  Vec squares{};
  int64_t c = 0;
  for (; c + V <= channels; c += V) {
    const Vec centered = load(x + c) - mean;
    squares += centered * centered;
  }
  float rest = 0;
  for (; c < channels; c++) rest += (x[c] - mean) * (x[c] - mean);
  return {mean, 1.f / std::sqrt((sum(squares) + rest) / channels + epsilon)};
}

// y = a row of x, normalized.
inline void normalize(const float* x, const float* gamma, const float* beta, float epsilon,
                      int64_t channels, float* y) {
  const Statistics s = statistics(x, channels, epsilon);
  for (int64_t c = 0; c < channels; c += V) {
    const int64_t n = channels - c;
    const Vec normal = (load(x + c, n) - s.mean) * s.rstd;
    store(y + c, normal * load(gamma + c, n) + load(beta + c, n), n);
  }
}

}  // namespace mindtwins
