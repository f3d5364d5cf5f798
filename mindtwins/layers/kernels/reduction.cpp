// Sums over all elements. float32.

#include "common.h"

using namespace mindtwins;

// x -> (1,): the sum of the squares of all elements
OPERATOR(sum_of_squares, "ff") {
  const float* x = INPUT(0);
  const int64_t count = product(shapes[0], ranks[0]);
  std::vector<double> partials((count + ELEMENTS - 1) / ELEMENTS);
  parallel(count, ELEMENTS, [&](int64_t begin, int64_t end) {
    Vec total[4] = {};  // several, so that additions need not wait for each other
    for (int64_t i = begin; i < end; i += 4 * V)
      for (int lane = 0; lane < 4 && i + lane * V < end; lane++) {
        const Vec v = load(x + i + lane * V, end - i - lane * V);
        total[lane] += v * v;
      }
    partials[begin / ELEMENTS] = sum((total[0] + total[1]) + (total[2] + total[3]));
  });
  double total = 0;
  for (const double partial : partials) total += partial;
  *OUTPUT(1) = float(total);
  return 0;
}
