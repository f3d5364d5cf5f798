// Numbers put in another order. MindSpore's own transpose keeps, for as long as the graph lives, a
// table of 8 bytes for every number that it moves: twice the memory of the tensor. float32.

#include "common.h"

using namespace mindtwins;

namespace {

// The pixels (B, height kernel, width kernel, C) of patches (B, height, width, C kernel kernel).
struct Patches {
  Patches(const int64_t* patches, int64_t kernel)
      : count(patches[0] * patches[1] * patches[2]), columns(patches[2]), kernel(kernel),
        channels(patches[3] / (kernel * kernel)) {}

  // Calls move(index in the patches, index in the pixels) for every number.
  template <class Move>
  void each(const Move& move) const {
    const int64_t size = channels * kernel * kernel;
    parallel(count, std::max<int64_t>(1, ELEMENTS / size), [&](int64_t begin, int64_t end) {
      for (int64_t patch = begin; patch < end; patch++) {
        const int64_t row = patch / columns, column = patch % columns;
        const int64_t corner = (row * kernel * columns + column) * kernel * channels;
        int64_t to = patch * size;
        for (int64_t c = 0; c < channels; c++)
          for (int64_t down = 0; down < kernel; down++)
            for (int64_t right = 0; right < kernel; right++)
              move(to++, corner + (down * columns * kernel + right) * channels + c);
      }
    });
  }

  int64_t count, columns, kernel, channels;
};

}  // namespace

// x (A, B, C) -> (A, C, B)
OPERATOR(swap_axes, "ff") {
  const float* x = INPUT(0);
  float* y = OUTPUT(1);
  const int64_t rows = shapes[0][1], columns = shapes[0][2], strips = (columns + V - 1) / V;
  const int64_t chunk = std::max<int64_t>(1, ELEMENTS / (V * rows));
  parallel(shapes[0][0] * strips, chunk, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; strip++) {
      const int64_t matrix = strip / strips * rows * columns, left = strip % strips * V;
      const int64_t right = std::min(left + V, columns);
      for (int64_t top = 0; top < rows; top += V)  // in squares that stay in the cache
        for (int64_t c = left; c < right; c++)
          for (int64_t r = top; r < std::min(top + V, rows); r++)
            y[matrix + c * rows + r] = x[matrix + r * columns + c];
    }
  });
  return 0;
}

// x (B, height k, width k, C), any matrix (k, k) -> (B, height, width, C k k)
OPERATOR(gather_patches, "fff") {
  const float* x = INPUT(0);
  float* y = OUTPUT(2);
  Patches(shapes[2], shapes[1][0]).each([&](int64_t to, int64_t from) { y[to] = x[from]; });
  return 0;
}

// dy (B, height, width, C k k), any matrix (k, k) -> dx (B, height k, width k, C)
OPERATOR(gather_patches_gradient, "fff") {
  const float* dy = INPUT(0);
  float* dx = OUTPUT(2);
  Patches(shapes[0], shapes[1][0]).each([&](int64_t from, int64_t to) { dx[to] = dy[from]; });
  return 0;
}
