// Greedy non-maximum suppression. Called through ctypes, outside of graphs: how many boxes are left
// is known only when it has run.

#include "common.h"

using namespace mindtwins;

// Corners x1, y1, x2, y2 of `count` boxes, best first, as four rows (4, count) -> keep[i] is 1
// unless a kept box before it overlaps box i by more than `threshold` of their union.
extern "C" void mindtwins_suppress(const float* corners, int64_t count, float threshold,
                                   uint8_t* keep) {
  const float *x1 = corners, *y1 = x1 + count, *x2 = y1 + count, *y2 = x2 + count;
  // In memory before they are added: a multiplication and addition in one would round otherwise.
  Buffer areas(count), intersections(count);
  for (int64_t i = 0; i < count; i++) areas[i] = (x2[i] - x1[i]) * (y2[i] - y1[i]);
  std::fill_n(keep, count, uint8_t(1));
  for (int64_t i = 0; i < count; i++) {
    if (!keep[i]) continue;
    for (int64_t j = i + 1; j < count; j++) {
      const float width = std::min(x2[i], x2[j]) - std::max(x1[i], x1[j]);
      const float height = std::min(y2[i], y2[j]) - std::max(y1[i], y1[j]);
      intersections[j] = std::max(width, 0.f) * std::max(height, 0.f);
    }
    for (int64_t j = i + 1; j < count; j++) {
      const float both = intersections[j];
      keep[j] &= !(both > threshold * (areas[i] + areas[j] - both));
    }
  }
}
