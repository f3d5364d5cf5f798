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

#include "common.h"

using namespace mindtwins;

namespace {

constexpr int POINTS = 16;              // of a transformed tile, 4 by 4
constexpr int TALL = V == 16 ? 8 : 4;   // rows and
constexpr int WIDE = 2 * V;             // columns of a product that are made in registers
constexpr int64_t DEPTH = 128;          // of a product: its panel stays in the nearest cache
constexpr int64_t STRIP = 128;          // tiles of a strip, forward
constexpr int64_t LONG_STRIP = 256;     // and in the gradient of the weight, their sum

inline int64_t panels(int64_t channels) { return (channels + WIDE - 1) / WIDE; }

// Adds, for TALL rows r, the sum over k of a[r * row + k * step] * panel[k][0 .. WIDE) to
// out[r][0 .. WIDE). Rows of `panel` and `out` follow each other.
void multiply(const float* a, int64_t row, int64_t step, const float* panel, int64_t depth,
              float* out) {
  Vec total[TALL][2] = {};
  for (int64_t k = 0; k < depth; k++) {
    const Vec left = load(panel + k * WIDE), right = load(panel + k * WIDE + V);
    for (int r = 0; r < TALL; r++) {
      const float factor = a[r * row + k * step];
      total[r][0] += factor * left;
      total[r][1] += factor * right;
    }
  }
  for (int r = 0; r < TALL; r++)
    for (int half = 0; half < 2; half++) {
      float* target = out + r * WIDE + half * V;
      store(target, load(target) + total[r][half]);
    }
}

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

// Tiles first .. first + count of x (B, H, W, C) -> V: point i of tile t at v[i * plane + t * stride].
void transform_input(const Tiles& tiles, const float* x, int64_t channels, int64_t first,
                     int64_t count, float* v, int64_t plane, int64_t stride) {
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
            const int64_t y = top + i - 1, at = left + j - 1;
            const bool zero = !inside && (y < 0 || y >= tiles.height || at < 0 || at >= tiles.width);
            d[i] = zero ? Vec{} : load(map + (y * tiles.width + at) * channels + c, channels - c);
          }
          input_points(d, &half[0][j], 4);
        }
        for (int i = 0; i < 4; i++) input_points(half[i], all + 4 * i, 1);
        for (int i = 0; i < POINTS; i++)
          store(v + i * plane + t * stride + c, all[i], channels - c);
      }
    });
}

// Where point i of tile t lies in M, for channels c ..: panels of WIDE channels, (i, panel, t).
inline int64_t in_panels(int64_t i, int64_t t, int64_t c, int64_t channels, int64_t strip) {
  return ((i * panels(channels) + c / WIDE) * strip + t) * WIDE + c % WIDE;
}

// M -> tiles first .. first + count of y (B, H, W, C).
void transform_output(const Tiles& tiles, const float* m, int64_t strip, int64_t channels,
                      int64_t first, int64_t count, float* y) {
  for (int64_t t = 0; t < count; t++)
    tiles.at(first + t, [&](int64_t image, int64_t top, int64_t left) {
      float* corner = y + ((image * tiles.height + top) * tiles.width + left) * channels;
      for (int64_t c = 0; c < channels; c += V) {
        const auto point = [&](int i, int j) {
          return load(m + in_panels(4 * i + j, t, c, channels, strip));
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

// weight (out, in, 3, 3) -> U, in panels of WIDE columns: (point, panel, row, WIDE). Rows are in and
// columns out; `transposed` the other way round, and kernels turned by 180 degrees.
Buffer transform_weight(const float* weight, int64_t in, int64_t out, bool transposed) {
  const int64_t rows = transposed ? out : in, columns = transposed ? in : out;
  Buffer u(POINTS * panels(columns) * rows * WIDE);
  parallel(panels(columns), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++)
      for (int64_t k = 0; k < rows; k++) {
        float taps[9][WIDE] = {};
        for (int64_t j = 0; j < std::min<int64_t>(WIDE, columns - panel * WIDE); j++) {
          const int64_t n = panel * WIDE + j;
          const float* kernel = weight + 9 * (transposed ? k * in + n : n * in + k);
          for (int tap = 0; tap < 9; tap++) taps[tap][j] = kernel[transposed ? 8 - tap : tap];
        }
        for (int half = 0; half < WIDE; half += V) {
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
              store(&u[(((4 * i + j) * panels(columns) + panel) * rows + k) * WIDE + half],
                    points[j]);
          }
        }
      }
  });
  return u;
}

// Maps (B, H, W, in) -> (B, H, W, out), by the transformed weight.
void convolve(const float* x, const Buffer& u, const int64_t* shape, int64_t in, int64_t out,
              float* y) {
  const Tiles tiles(shape);
  const int64_t per_thread = (tiles.count + thread_count - 1) / thread_count;
  const int64_t strip = std::min(STRIP, (per_thread + TALL - 1) / TALL * TALL);
  // Several strips at a time share their scratch memory.
  const int64_t share = std::max<int64_t>(1, per_thread / 2 / strip) * strip;
  const int64_t stride = round_up(in) + V;  // no power of two, which would crowd few cache lines
  parallel(tiles.count, share, [&](int64_t begin, int64_t end) {
    Buffer v(POINTS * strip * stride), m(POINTS * panels(out) * strip * WIDE);
    for (int64_t first = begin; first < end; first += strip) {
      const int64_t count = std::min(strip, end - first);
      transform_input(tiles, x, in, first, count, v.data(), strip * stride, stride);
      for (int64_t i = 0; i < POINTS; i++)
        for (int64_t panel = 0; panel < panels(out); panel++) {
          const int64_t at = i * panels(out) + panel;
          std::fill_n(&m[at * strip * WIDE], strip * WIDE, 0.f);
          for (int64_t c = 0; c < in; c += DEPTH)
            for (int64_t t = 0; t < count; t += TALL)
              multiply(&v[(i * strip + t) * stride + c], stride, 1, &u[(at * in + c) * WIDE],
                       std::min(DEPTH, in - c), &m[(at * strip + t) * WIDE]);
        }
      transform_output(tiles, m.data(), strip, out, first, count, y);
    }
  });
}

// x (B, H, W, in), dy (B, H, W, out) -> dweight (out, in, 3, 3)
void weight_gradient(const float* x, const float* dy, const int64_t* shape, int64_t in, int64_t out,
                     float* dweight) {
  const Tiles tiles(shape);
  const int64_t strip = std::min(LONG_STRIP, tiles.count), stride = round_up(in) + V;
  const int64_t height = (in + TALL - 1) / TALL * TALL;  // rows of dU
  Buffer v(POINTS * strip * stride), m(POINTS * panels(out) * strip * WIDE);
  Buffer du(POINTS * panels(out) * height * WIDE);  // (point, panel, in, WIDE)
  for (int64_t first = 0; first < tiles.count; first += strip) {
    const int64_t count = std::min(strip, tiles.count - first);
    parallel(count, 16, [&](int64_t begin, int64_t end) {
      transform_input(tiles, x, in, first + begin, end - begin, &v[begin * stride], strip * stride,
                      stride);
      transform_gradient(tiles, dy, strip, out, first + begin, end - begin, &m[begin * WIDE]);
    });
    constexpr int64_t SLAB = 4 * TALL;
    const int64_t slabs = (height + SLAB - 1) / SLAB;
    parallel(POINTS * slabs, 4, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t i = item / slabs, top = item % slabs * SLAB;
        for (int64_t panel = 0; panel < panels(out); panel++)
          for (int64_t c = top; c < std::min(height, top + SLAB); c += TALL)
            multiply(&v[i * strip * stride + c], 1, stride,
                           &m[(i * panels(out) + panel) * strip * WIDE], count,
                           &du[((i * panels(out) + panel) * height + c) * WIDE]);
      }
    });
  }
  parallel(in, 4, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++)
      for (int64_t o = 0; o < out; o += V) {
        const auto point = [&](int i, int j) {
          return load(&du[(((4 * i + j) * panels(out) + o / WIDE) * height + c) * WIDE + o % WIDE]);
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
        for (int64_t n = 0; n < std::min<int64_t>(V, out - o); n++)
          for (int tap = 0; tap < 9; tap++) dweight[((o + n) * in + c) * 9 + tap] = taps[tap][n];
      }
  });
}

}  // namespace

// x (B, H, W, in), weight (out, in, 3, 3) -> y (B, H, W, out)
OPERATOR(conv3x3, "fff") {
  const int64_t out = shapes[1][0], in = shapes[1][1];
  convolve(INPUT(0), transform_weight(INPUT(1), in, out, false), shapes[0], in, out, OUTPUT(2));
  return 0;
}

// dy, x, weight -> dx, dweight
OPERATOR(conv3x3_gradient, "fffff") {
  const int64_t out = shapes[2][0], in = shapes[2][1];
  convolve(INPUT(0), transform_weight(INPUT(2), in, out, true), shapes[0], out, in, OUTPUT(3));
  weight_gradient(INPUT(1), INPUT(0), shapes[1], in, out, OUTPUT(4));
  return 0;
}
