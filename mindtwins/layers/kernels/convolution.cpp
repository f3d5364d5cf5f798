// The 3x3 convolution over all channels, zero padding 1, by Winograd's minimal filtering F(2x2, 3x3)
// (Lavin & Gray 2016): a tile of 2x2 outputs takes 16 products per pair of channels instead of 36.
//
//   V = B^T d B   of the 4x4 inputs d of each tile      16 maps (tiles, in)
//   U = G g G^T   of each 3x3 kernel g                  16 matrices (in, out)
//   M = V U       16 matrix products                    16 maps (tiles, out)
//   y = A^T M A   2x2 outputs of each tile
//
// Tiles are worked on strip by strip, so that V and M, which are four times as large as the maps,
// are never kept. The gradient by the input is the convolution with the kernels turned by 180
// degrees; that by the weight is G^T (V^T (A dy A^T)) G, V being made again.
//
// What the definition makes of zeros alone, as behind ReLUs, would here be what is left when rounded
// sums cancel. Adam divides a gradient by its size and would make whole steps of that, so it is 0,
// whatever the weight is: of one that is not finite, too.

#include "product.h"

using namespace mindtwins;

namespace {

constexpr int POINTS = 16;           // of a transformed tile, 4 by 4
constexpr int64_t STRIP = BLOCK;     // tiles of a strip, forward
constexpr int64_t LONG_STRIP = 256;  // and in the gradient of the weight, their sum

// V, M or their gradients of a strip: point i, tile t and channel c are at i * plane + t * row + c.
// No power of two apart, where they would meet in the cache.
struct Layout {
  Layout(int64_t tiles, int64_t channels)
      : row(round_up(channels) + V), plane(tiles * row + 2 * V) {}
  int64_t size() const { return POINTS * plane; }
  int64_t row, plane;
};

// U of (rows, columns) channels: point i of a panel of PANEL columns is at i * plane + panel * size.
struct Weights {
  Weights(int64_t rows, int64_t columns)
      : size(rows * PANEL), plane(panels(columns) * size + PANEL) {}
  int64_t size, plane;
};

// The tiles of maps (B, H, W, C), row by row; those at the bottom and right may stick out.
struct Tiles {
  Tiles(const int64_t* shape)
      : height(shape[1]), width(shape[2]), rows((height + 1) / 2), columns((width + 1) / 2),
        count(shape[0] * rows * columns) {}

  // Calls use(image, y, x) with the upper left corner of the tile.
  template <class Use>
  void at(int64_t tile, const Use& use) const {
    use(tile / columns / rows, tile / columns % rows * 2, tile % columns * 2);
  }

  int64_t height, width, rows, columns, count;
};

// B^T of four numbers.
inline void input_points(const Vec d[4], Vec* out, int step) {
  out[0] = d[0] - d[2];
  out[step] = d[1] + d[2];
  out[2 * step] = d[2] - d[1];
  out[3 * step] = d[1] - d[3];
}

// Tiles first .. first + count of x (B, H, W, C) -> V.
void transform_input(const Tiles& tiles, const float* x, int64_t channels, int64_t first,
                     int64_t count, float* v, Layout at) {
  for (int64_t t = 0; t < count; t++)
    tiles.at(first + t, [&](int64_t image, int64_t top, int64_t left) {
      const float* map = x + image * tiles.height * tiles.width * channels;
      const bool inside =
          top > 0 && left > 0 && top + 2 < tiles.height && left + 2 < tiles.width;
      for (int64_t c = 0; c < channels; c += V) {
        Vec half[4][4], all[POINTS];
        for (int j = 0; j < 4; j++) {
          Vec d[4];
          for (int i = 0; i < 4; i++) {
            const int64_t y = top + i - 1, x = left + j - 1;
            const bool zero = !inside && (y < 0 || y >= tiles.height || x < 0 || x >= tiles.width);
            d[i] = zero ? Vec{} : load(map + (y * tiles.width + x) * channels + c, channels - c);
          }
          input_points(d, &half[0][j], 4);
        }
        for (int i = 0; i < 4; i++) input_points(half[i], all + 4 * i, 1);
        for (int i = 0; i < POINTS; i++)
          store(v + i * at.plane + t * at.row + c, all[i], channels - c);
      }
    });
}

// M -> tiles first .. first + count of y (B, H, W, C).
void transform_output(const Tiles& tiles, const float* m, Layout at, int64_t channels,
                      int64_t first, int64_t count, float* y) {
  for (int64_t t = 0; t < count; t++)
    tiles.at(first + t, [&](int64_t image, int64_t top, int64_t left) {
      float* corner = y + ((image * tiles.height + top) * tiles.width + left) * channels;
      for (int64_t c = 0; c < channels; c += V) {
        const auto point = [&](int i, int j) {
          return load(m + (4 * i + j) * at.plane + t * at.row + c);
        };
        Vec upper[4], lower[4];
        for (int j = 0; j < 4; j++) {
          const Vec second = point(1, j), third = point(2, j);
          upper[j] = point(0, j) + second + third;
          lower[j] = second - third - point(3, j);
        }
        const auto write = [&](const Vec* row, float* target) {
          store(target + c, row[0] + row[1] + row[2], channels - c);
          if (left + 1 < tiles.width)
            store(target + channels + c, row[1] - row[2] - row[3], channels - c);
        };
        write(upper, corner);
        if (top + 1 < tiles.height) write(lower, corner + tiles.width * channels);
      }
    });
}

// Where point i of tile t lies in dM, for channels c ..: panels for products, (point, panel, tile).
inline int64_t in_panels(int64_t i, int64_t t, int64_t c, int64_t channels, int64_t strip) {
  return ((i * panels(channels) + c / PANEL) * strip + t) * PANEL + c % PANEL;
}

// Tiles first .. first + count of dy (B, H, W, C) -> dM: the transpose of `transform_output`.
void transform_gradient(const Tiles& tiles, const float* dy, int64_t strip, int64_t channels,
                        int64_t first, int64_t count, float* m) {
  for (int64_t t = 0; t < count; t++)
    tiles.at(first + t, [&](int64_t image, int64_t top, int64_t left) {
      const float* corner = dy + ((image * tiles.height + top) * tiles.width + left) * channels;
      for (int64_t c = 0; c < channels; c += V) {
        Vec d[2][2];
        for (int i = 0; i < 2; i++)
          for (int j = 0; j < 2; j++)
            d[i][j] = top + i < tiles.height && left + j < tiles.width
                          ? load(corner + (i * tiles.width + j) * channels + c, channels - c)
                          : Vec{};
        Vec rows[4][2];
        for (int j = 0; j < 2; j++) {
          rows[0][j] = d[0][j];
          rows[1][j] = d[0][j] + d[1][j];
          rows[2][j] = d[0][j] - d[1][j];
          rows[3][j] = -d[1][j];
        }
        for (int i = 0; i < 4; i++) {
          const Vec points[4] = {rows[i][0], rows[i][0] + rows[i][1], rows[i][0] - rows[i][1],
                                 -rows[i][1]};
          for (int j = 0; j < 4; j++)
            store(m + in_panels(4 * i + j, t, c, channels, strip), points[j]);
        }
      }
    });
}

// weight (out, in, 3, 3) -> U. Rows are in and columns out; `transposed` the other way round, and
// kernels turned by 180 degrees.
void transform_weight(const float* weight, int64_t in, int64_t out, bool transposed, float* u) {
  const int64_t rows = transposed ? out : in, columns = transposed ? in : out;
  const Weights at(rows, columns);
  parallel(panels(columns), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++)
      for (int64_t k = 0; k < rows; k++) {
        float taps[9][PANEL] = {};
        for (int64_t j = 0; j < std::min<int64_t>(PANEL, columns - panel * PANEL); j++) {
          const int64_t n = panel * PANEL + j;
          const float* kernel = weight + 9 * (transposed ? k * in + n : n * in + k);
          for (int tap = 0; tap < 9; tap++) taps[tap][j] = kernel[transposed ? 8 - tap : tap];
        }
        for (int half = 0; half < PANEL; half += V) {
          Vec rows_done[4][3];
          for (int j = 0; j < 3; j++) {
            const Vec g0 = load(taps[j] + half), g1 = load(taps[3 + j] + half),
                      g2 = load(taps[6 + j] + half);
            rows_done[0][j] = g0;
            rows_done[1][j] = (g0 + g1 + g2) * 0.5f;
            rows_done[2][j] = (g0 - g1 + g2) * 0.5f;
            rows_done[3][j] = g2;
          }
          for (int i = 0; i < 4; i++) {
            const Vec *g = rows_done[i];
            const Vec points[4] = {g[0], (g[0] + g[1] + g[2]) * 0.5f, (g[0] - g[1] + g[2]) * 0.5f,
                                   g[2]};
            for (int j = 0; j < 4; j++)
              store(u + (4 * i + j) * at.plane + panel * at.size + k * PANEL + half, points[j]);
          }
        }
      }
  });
}

// Makes 0 the pixels of y (B, H, W, out) around which all of x (B, H, W, in) is 0.
void clear_pixels(const float* x, const int64_t* shape, int64_t in, int64_t out, float* y) {
  const int64_t height = shape[1], width = shape[2], pixels = product(shape, 3);
  std::vector<char> is_set(pixels);
  parallel(pixels, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++)
      is_set[p] = std::any_of(x + p * in, x + (p + 1) * in, [](float value) { return value != 0; });
  });
  const auto sees = [&](int64_t p) {
    const int64_t row = p / width % height, column = p % width;
    for (int64_t i = row > 0 ? -1 : 0; i <= (row + 1 < height); i++)
      for (int64_t j = column > 0 ? -1 : 0; j <= (column + 1 < width); j++)
        if (is_set[p + i * width + j]) return true;
    return false;
  };
  for (int64_t p = 0; p < pixels; p++)
    if (!is_set[p] && !sees(p)) std::fill(y + p * out, y + (p + 1) * out, 0.f);
}

// Which numbers of maps (B, H, W, C) are not 0: bits of 32 pixels in a word, word w of channel c at
// w * row + c. After each row of pixels comes an empty one, after each image an empty row, so that
// pixels and their neighbors are as far apart everywhere.
struct Support {
  Support(const float* x, const int64_t* shape, int64_t channels)
      : stride(shape[2] + 1), row(round_up(channels)), first(stride / 32 + 1),
        last(first + (shape[0] * (shape[1] + 1) * stride + 31) / 32), words((last + first + 1) * row),
        any(row) {
    const int64_t height = shape[1], width = shape[2];
    parallel(last - first, 8, [&](int64_t begin, int64_t end) {
      for (int64_t bit = 32 * begin; bit < 32 * end; bit++) {
        const int64_t line = bit / stride, column = bit % stride, image = line / (height + 1);
        if (image >= shape[0] || line % (height + 1) == height || column == width) continue;
        const float* pixel = x + ((line - image) * width + column) * channels;
        uint32_t* word = &words[(first + bit / 32) * row];
        for (int64_t c = 0; c < channels; c += V) {
          const IntVec is_set = mindtwins::load(pixel + c, channels - c) != Vec{};
          const IntVec all = load(word + c) | (is_set & int32_t(1u << bit % 32));
          std::memcpy(word + c, &all, sizeof all);
        }
      }
    });
    for (int64_t at = 0; at < int64_t(words.size()); at++) any[at % row] |= words[at];
  }

  static IntVec load(const uint32_t* p) {
    IntVec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }

  // Those of channel c that are `distance` after the pixels of word w.
  int32_t shifted(int64_t w, int64_t c, int64_t distance) const {
    const int64_t bit = 32 * w + distance;
    const uint32_t* word = &words[bit / 32 * row + c];
    return int32_t((uint64_t(word[row]) << 32 | word[0]) >> bit % 32);
  }

  int64_t stride, row, first, last;  // the words from `first` to `last` have pixels
  std::vector<uint32_t> words, any;  // and the words of each channel together
};

// In which of the channels o .. of y there is a pixel that is not 0 where x has one of channel c
// `distance` after it.
IntVec overlap(const Support& x, int64_t c, const Support& y, int64_t o, int64_t distance) {
  IntVec found{};
  const IntVec never = Support::load(&y.any[o]) == 0;  // in channels without any, none is looked for
  for (int64_t w = y.first; w < y.last; w++) {
    const int32_t word = x.shifted(w, c, distance);
    if (!word) continue;
    found |= Support::load(&y.words[w * y.row + o]) & word;
    int missing = 0;
    for (int i = 0; i < V; i++) missing += (found | never)[i] == 0;
    if (!missing) break;
  }
  return found != 0;
}

// Maps (B, H, W, in) -> (B, H, W, out), by the transformed weight.
void convolve(const float* x, const float* u, const int64_t* shape, int64_t in, int64_t out,
              float* y) {
  const Tiles tiles(shape);
  if (tiles.count == 0) return;
  const int64_t strip = share_of(tiles.count, STRIP);
  const Layout before(strip, in), after(strip, out);
  const Weights weights(in, out);
  parallel(tiles.count, strip, [&](int64_t begin, int64_t end) {
    Scratch v(before.size()), m(after.size());
    transform_input(tiles, x, in, begin, end - begin, v.data(), before);
    for (int64_t i = 0; i < POINTS; i++) {
      const float* panel = u + i * weights.plane;
      for (int64_t column = 0; column < out; column += PANEL, panel += weights.size)
        multiply_panel({v.data() + i * before.plane, before.row, 1}, end - begin, panel, in,
                       Output<Identity>{m.data() + i * after.plane, out, after.row, nullptr, nullptr},
                       0, column, panel + weights.size);
    }
    transform_output(tiles, m.data(), after, out, begin, end - begin, y);
  });
  clear_pixels(x, shape, in, out, y);
}

// x (B, H, W, in), dy (B, H, W, out) -> dweight (out, in, 3, 3)
void weight_gradient(const float* x, const float* dy, const int64_t* shape, int64_t in, int64_t out,
                     float* dweight) {
  const Tiles tiles(shape);
  const int64_t strip = std::min(LONG_STRIP, tiles.count), width = round_up(out);
  const Layout before(strip, in);
  Scratch v(before.size()), m(POINTS * panels(out) * strip * PANEL);
  Buffer du(POINTS * in * width);
  const Support of_x(x, shape, in), of_dy(dy, shape, out);
  for (int64_t first = 0; first < tiles.count; first += strip) {
    const int64_t count = std::min(strip, tiles.count - first);
    parallel(count, 16, [&](int64_t begin, int64_t end) {
      transform_input(tiles, x, in, first + begin, end - begin, v.data() + begin * before.row,
                      before);
      transform_gradient(tiles, dy, strip, out, first + begin, end - begin,
                         m.data() + begin * PANEL);
    });
    const int64_t blocks = (in + BLOCK - 1) / BLOCK;
    parallel(POINTS * blocks, 1, [&](int64_t item, int64_t) {
      const int64_t i = item / blocks, c = item % blocks * BLOCK;
      float* sums = &du[(i * in + c) * width];
      for (int64_t column = 0; column < out; column += PANEL) {
        const float* panel = m.data() + in_panels(i, 0, column, out, strip);
        multiply_panel({v.data() + i * before.plane + c, 1, before.row}, std::min(BLOCK, in - c),
                       panel, count, Output<Identity>{sums, width, width, nullptr, sums}, 0, column,
                       panel + PANEL * strip);
      }
    });
  }
  parallel(in, 4, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++)
      for (int64_t o = 0; o < out; o += V) {
        const auto point = [&](int i, int j) {
          return load(&du[((4 * i + j) * in + c) * width + o]);
        };
        Vec rows[3][4], taps[9];
        for (int j = 0; j < 4; j++) {
          const Vec total = (point(1, j) + point(2, j)) * 0.5f;
          rows[0][j] = point(0, j) + total;
          rows[1][j] = (point(1, j) - point(2, j)) * 0.5f;
          rows[2][j] = total + point(3, j);
        }
        for (int i = 0; i < 3; i++) {
          const Vec total = (rows[i][1] + rows[i][2]) * 0.5f;
          taps[3 * i] = rows[i][0] + total;
          taps[3 * i + 1] = (rows[i][1] - rows[i][2]) * 0.5f;
          taps[3 * i + 2] = total + rows[i][3];
        }
        for (int tap = 0; tap < 9; tap++) {
          const int64_t distance = (tap / 3 - 1) * of_x.stride + tap % 3 - 1;
          taps[tap] = overlap(of_x, c, of_dy, o, distance) ? taps[tap] : Vec{};
        }
        for (int64_t n = 0; n < std::min<int64_t>(V, out - o); n++)
          for (int tap = 0; tap < 9; tap++) dweight[((o + n) * in + c) * 9 + tap] = taps[tap][n];
      }
  });
}

}  // namespace

// x (B, H, W, in), weight (out, in, 3, 3) -> y (B, H, W, out)
OPERATOR(conv3x3, "fff") {
  const int64_t out = shapes[1][0], in = shapes[1][1];
  Scratch u(POINTS * Weights(in, out).plane);
  transform_weight(INPUT(1), in, out, false, u.data());
  convolve(INPUT(0), u.data(), shapes[0], in, out, OUTPUT(2));
  return 0;
}

// dy, x, weight -> dx, dweight
OPERATOR(conv3x3_gradient, "fffff") {
  const int64_t out = shapes[2][0], in = shapes[2][1];
  {
    Scratch u(POINTS * Weights(out, in).plane);
    transform_weight(INPUT(2), in, out, true, u.data());
    convolve(INPUT(0), u.data(), shapes[0], out, in, OUTPUT(3));
  }
  weight_gradient(INPUT(1), INPUT(0), shapes[1], in, out, OUTPUT(4));
  return 0;
}
