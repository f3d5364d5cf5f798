// What the exact GELU is made of.

#pragma once

#include "common.h"

namespace mindtwins {

// erf(x / sqrt(2)) as x P(x^2) / Q(x^2), fitted for |x| <= 5.4 with an error of 1e-8, where it passes
// 1 by a rounding. NaN gives NaN.
inline Vec error_function(Vec x) {
  x = minimum(maximum(x, broadcast(-5.4f)), broadcast(5.4f));
  const Vec t = x * x;
  Vec p = broadcast(4.67735717e-08f);
  p = p * t + 1.27200401e-05f;
  p = p * t + 0.000328642607f;
  p = p * t + 0.00930169784f;
  p = p * t + 0.0667443722f;
  p = p * t + 0.797884464f;
  Vec q = broadcast(1.21659252e-06f);
  q = q * t + 7.24000784e-05f;
  q = q * t + 0.00185897923f;
  q = q * t + 0.0283786636f;
  q = q * t + 0.250317752f;
  q = q * t + 1.f;
  return minimum(maximum(x * p * reciprocal(q), broadcast(-1.f)), broadcast(1.f));
}

// x Phi(x), with the normal distribution function Phi.
inline Vec gelu(Vec x) {
  const Vec half = x * 0.5f;
  return half * error_function(x) + half;
}

// Its derivative, Phi(x) + x phi(x).
inline Vec gelu_slope(Vec x) {
  const Vec density = exponential(x * x * -0.5f) * 0.398942280f;
  return error_function(x) * 0.5f + 0.5f + x * density;
}

}  // namespace mindtwins
