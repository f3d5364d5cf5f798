// The depthwise 3x3 convolution, stride 1, zero padding 1, on channels-last tokens (B, H, W, C).
// float32.

#include "common.h"

using namespace mindtwins;

namespace {

// Slides over one row of tokens and gives, for each column and V channels from `c` on, the 3x3
// neighborhood; outside of the map it is zero. Calls use(x, neighborhood of nine vectors).
template <class Use>
inline void slide(const float* map, int64_t y, int64_t height, int64_t width, int64_t channels,
                  int64_t c, const Use& use) {
  const int64_t n = channels - c;
  const float* rows[3];
  for (int i = 0; i < 3; i++) {
    const int64_t row = y + i - 1;
    rows[i] = row < 0 || row >= height ? nullptr : map + row * width * channels + c;
  }
  const auto value = [&](int i, int64_t x) {
    return rows[i] && x < width ? load(rows[i] + x * channels, n) : Vec{};
  };
  Vec near[9] = {};
  for (int i = 0; i < 3; i++) near[3 * i + 2] = value(i, 0);
  for (int64_t x = 0; x < width; x++) {
    for (int i = 0; i < 3; i++) {
      near[3 * i] = near[3 * i + 1];
      near[3 * i + 1] = near[3 * i + 2];
      near[3 * i + 2] = value(i, x + 1);
    }
    use(x, near);
  }
}

// out = sum over taps of weight[tap] * neighbor (+ bias); `flip` turns the kernel by 180 degrees,
// which is the convolution's transpose. Weights are (C, 3, 3).
void convolve(const float* x, const float* weight, const float* bias, bool flip,
              const int64_t* shape, float* out) {
  const int64_t height = shape[1], width = shape[2], channels = shape[3];
  Buffer taps(9 * channels);
  for (int64_t c = 0; c < channels; c++)
    for (int tap = 0; tap < 9; tap++)
      taps[tap * channels + c] = weight[9 * c + (flip ? 8 - tap : tap)];
  parallel(shape[0] * height, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* map = x + row / height * height * width * channels;
      float* target = out + row * width * channels;
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c;
        Vec w[9];
        for (int tap = 0; tap < 9; tap++) w[tap] = load(&taps[tap * channels + c], n);
        const Vec start = bias ? load(bias + c, n) : Vec{};
        slide(map, row % height, height, width, channels, c, [&](int64_t column, const Vec* near) {
          Vec total = start;
          for (int tap = 0; tap < 9; tap++) total += w[tap] * near[tap];
          store(target + column * channels + c, total, n);
        });
      }
    }
  });
}

}  // namespace

// x (B, H, W, C), weight (C, 1, 3, 3), bias (C,) -> y
OPERATOR(depthwise, "ffff") {
  convolve(INPUT(0), INPUT(1), INPUT(2), false, shapes[0], OUTPUT(3));
  return 0;
}

// dy, x, weight -> dx, dweight, dbias
OPERATOR(depthwise_gradient, "ffffff") {
  const float *dy = INPUT(0), *x = INPUT(1);
  const int64_t *shape = shapes[1], height = shape[1], width = shape[2], channels = shape[3];
  convolve(dy, INPUT(2), nullptr, true, shape, OUTPUT(3));
  constexpr int64_t LINES = 16;
  const int64_t padded = round_up(channels), lines = shape[0] * height;
  Buffer partials((lines + LINES - 1) / LINES * 10 * padded);
  parallel(lines, LINES, [&](int64_t begin, int64_t end) {
    float* partial = &partials[begin / LINES * 10 * padded];
    for (int64_t line = begin; line < end; line++) {
      const float* map = x + line / height * height * width * channels;
      const float* gradient = dy + line * width * channels;
      for (int64_t c = 0; c < channels; c += V) {
        Vec total[10];
        for (int i = 0; i < 10; i++) total[i] = load(partial + i * padded + c);
        slide(map, line % height, height, width, channels, c, [&](int64_t column, const Vec* near) {
          const Vec g = load(gradient + column * channels + c, channels - c);
          for (int tap = 0; tap < 9; tap++) total[tap] += g * near[tap];
          total[9] += g;
        });
        for (int i = 0; i < 10; i++) store(partial + i * padded + c, total[i]);
      }
    }
  });
  Buffer taps(9 * channels);
  for (int tap = 0; tap < 9; tap++)
    add_partials(partials, 10 * padded, tap * padded, channels, &taps[tap * channels]);
  for (int64_t i = 0; i < 9 * channels; i++) OUTPUT(4)[i] = taps[i % 9 * channels + i / 9];
  add_partials(partials, 10 * padded, 9 * padded, channels, OUTPUT(5));
  return 0;
}
