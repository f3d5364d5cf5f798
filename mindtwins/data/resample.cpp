// Pillow's Image.resize for 8-bit colors, byte for byte, of a part of the result.
//
// Pillow resizes in two passes, across and down, with weights in fixed point and bytes in between
// (its file src/libImaging/Resample.c). The same integers are computed here, but only those that
// the wanted part needs, in loops over contiguous bytes that compilers vectorize.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

// Compiled twice, and chosen when the library is loaded: it runs on every processor.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONED __attribute__((target_clones("avx2", "default")))
#else
#define CLONED
#endif

namespace {

constexpr int kPrecision = 32 - 8 - 2;

double triangle(double x) { return x < 0 ? std::max(1.0 + x, 0.0) : std::max(1.0 - x, 0.0); }

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

inline uint8_t cut(int32_t sum) {
  return uint8_t(std::clamp((sum + (1 << (kPrecision - 1))) >> kPrecision, 0, 255));
}

// For each place of [start, stop): the first pixel of the source that counts, and the weights.
struct Weights {
  std::vector<int> first, count;
  size_t stride;
  std::vector<int> values;

  Weights(int source, int target, int start, int stop, bool bicubic)
      : first(stop - start), count(stop - start) {
    const double scale = double(source) / target, spread = std::max(scale, 1.0);
    const double support = (bicubic ? 2.0 : 1.0) * spread, inverse = 1.0 / spread;
    stride = 2 * size_t(std::ceil(support)) + 1;
    values.resize(stride * (stop - start));
    std::vector<double> weights(stride);
    for (int place = start; place < stop; place++) {
      const double center = (place + 0.5) * scale;
      const int low = std::max(int(center - support + 0.5), 0);
      const int high = std::min(int(center + support + 0.5), source);
      double sum = 0;
      for (int x = low; x < high; x++) {
        const double at = (x - center + 0.5) * inverse;
        sum += weights[x - low] = bicubic ? cubic(at) : triangle(at);
      }
      first[place - start] = low;
      count[place - start] = high - low;
      for (int x = 0; x < high - low; x++) {
        const double weight = (sum != 0 ? weights[x] / sum : weights[x]) * (1 << kPrecision);
        values[stride * (place - start) + x] = int(weight < 0 ? weight - 0.5 : weight + 0.5);
      }
    }
  }

  // The source's pixels that count for any place: [begin(), end()).
  int begin() const { return first.front(); }
  int end() const { return first.back() + count.back(); }
};

// Rows of `length` bytes, `stride` bytes apart, to as many rows as there are weights. `offset` is
// the number of the first row that is there.
CLONED void resize_rows(const uint8_t* rows, size_t stride, size_t length, int offset,
                        const Weights& weights, uint8_t* out) {
  constexpr size_t kBlock = 32;  // sums that fit into registers
  for (size_t y = 0; y < weights.first.size(); y++, out += length) {
    const uint8_t* in = rows + stride * (weights.first[y] - offset);
    const int* weight = &weights.values[weights.stride * y];
    const size_t taps = weights.count[y];
    size_t i = 0;
    for (; i + kBlock <= length; i += kBlock) {
      int32_t sums[kBlock] = {};
      for (size_t tap = 0; tap < taps; tap++) {
        const uint8_t* block = in + stride * tap + i;
        for (size_t k = 0; k < kBlock; k++) sums[k] += block[k] * weight[tap];
      }
      for (size_t k = 0; k < kBlock; k++) out[i + k] = cut(sums[k]);
    }
    for (; i < length; i++) {
      int32_t sum = 0;
      for (size_t tap = 0; tap < taps; tap++) sum += in[stride * tap + i] * weight[tap];
      out[i] = cut(sum);
    }
  }
}

// (height, width) pixels, rows `stride` pixels apart, to (width, height).
void transpose(const uint32_t* in, size_t stride, size_t height, size_t width, uint32_t* out) {
  constexpr size_t kTile = 16;
  for (size_t y0 = 0; y0 < height; y0 += kTile)
    for (size_t x0 = 0; x0 < width; x0 += kTile)
      for (size_t x = x0; x < std::min(x0 + kTile, width); x++)
        for (size_t y = y0; y < std::min(y0 + kTile, height); y++)
          out[height * x + y] = in[stride * y + x];
}

using Pixels = std::vector<uint32_t>;

const uint8_t* bytes(const Pixels& pixels) {
  return reinterpret_cast<const uint8_t*>(pixels.data());
}
uint8_t* bytes(Pixels& pixels) { return reinterpret_cast<uint8_t*>(pixels.data()); }

// (height, width) pixels, rows `stride` pixels apart, whose first column has the number `offset`,
// to as many columns as there are weights: rows again, but transposed, so that a whole column is
// computed at once.
Pixels resize_columns(const uint32_t* in, size_t stride, size_t height, size_t width, int offset,
                      const Weights& weights) {
  const size_t columns = weights.first.size();
  Pixels turned(width * height), resized(columns * height), result(columns * height);
  transpose(in, stride, height, width, turned.data());
  resize_rows(bytes(turned), 4 * height, 4 * height, offset, weights, bytes(resized));
  transpose(resized.data(), height, columns, height, result.data());
  return result;
}

}  // namespace

// Resizes `source`, (height, width) pixels of four bytes, to target_height x target_width, and
// writes the columns [left, left + out_width) and rows [top, top + out_height) of the result, four
// bytes a pixel, to `out`. Returns 0, or 1 where memory is short.
extern "C" int mindtwins_resample(const uint32_t* source, int width, int height, int target_width,
                                  int target_height, int left, int top, int out_width,
                                  int out_height, int bicubic, int down_first,
                                  uint32_t* out) try {
  const Weights across(width, target_width, left, left + out_width, bicubic);
  const Weights down(height, target_height, top, top + out_height, bicubic);
  const size_t columns = across.end() - across.begin(), rows = down.end() - down.begin();
  source += size_t(width) * down.begin() + across.begin();
  if (down_first) {
    Pixels middle(columns * out_height);
    resize_rows(reinterpret_cast<const uint8_t*>(source), 4 * size_t(width), 4 * columns,
                down.begin(), down, bytes(middle));
    const Pixels result =
        resize_columns(middle.data(), columns, out_height, columns, across.begin(), across);
    std::copy(result.begin(), result.end(), out);
  } else {
    const Pixels middle = resize_columns(source, width, rows, columns, across.begin(), across);
    resize_rows(bytes(middle), 4 * size_t(out_width), 4 * size_t(out_width), down.begin(), down,
                reinterpret_cast<uint8_t*>(out));
  }
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
