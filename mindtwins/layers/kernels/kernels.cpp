// The operations of Twins that MindSpore's CPU kernels are slow at: exact GELU, layer norm, the
// depthwise 3x3 convolution, and attention together with the transposes around it. Each comes with
// its gradient. float32, tokens channels-last (B, H, W, C).
//
// Sums that run over tokens (gradients of weights) are made per chunk of fixed size and added in
// the order of the chunks, so results do not depend on the number of threads or their timing.

#include <pthread.h>

#include "common.h"

using namespace mindtwins;

namespace {

__attribute__((constructor)) void create_pool() {
  pool = new Pool;
  pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
}

// ------------------------------------------------------------------------------------------- GELU

// Phi(x), the normal distribution function, as 1 / (1 + exp(-x p(x^2))). p was fitted so that the
// error of Phi is below 3e-8 everywhere; the same coefficients are in layers/activation.py.
inline Vec normal_distribution(Vec x) {
  const Vec t = x * x;
  Vec p = fill(3.512342990111524e-9f);
  p = p * t - 2.645267388210844e-7f;
  p = p * t + 7.929489665848992e-6f;
  p = p * t - 1.1061239243328784e-4f;
  p = p * t - 6.518993720289579e-5f;
  p = p * t + 7.266616913011892e-2f;
  p = p * t + 1.5957698829289195f;
  return 1.f / (1.f + exponential(-x * p));
}

// ------------------------------------------------------------------------------------- layer norm

struct Moments {
  float mean, rstd;
};

Moments moments(const float* x, int64_t channels, float epsilon) {
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

// -------------------------------------------------------------------------- depthwise convolution

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
  Numbers taps(9 * channels);
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

// -------------------------------------------------------------------------------------- attention

constexpr int BLOCK = 8;         // queries that share one pass over the keys
constexpr int64_t HEADS = 8;     // per chunk of window attention
constexpr int64_t QUERIES = 64;  // per chunk of global attention

// Rows of a matrix that lie anywhere: row i starts at base + offsets[i].
struct Rows {
  const float* base;
  const int64_t* offsets;
  const float* operator[](int64_t i) const { return base + offsets[i]; }
};

// out[r][0..columns) = sum over i of a[r][i] * b[i * stride ...], for BLOCK rows; `columns` is a
// multiple of V. The heart of attention: all its products have this form.
template <int WIDTH>
inline void multiply_columns(const float* const* a, int64_t depth, const float* b, int64_t stride,
                             float* const* out, int64_t column) {
  Vec total[BLOCK][WIDTH] = {};
  for (int64_t i = 0; i < depth; i++) {
    Vec row[WIDTH];
    for (int w = 0; w < WIDTH; w++) row[w] = load(b + i * stride + column + w * V);
    for (int r = 0; r < BLOCK; r++)
      for (int w = 0; w < WIDTH; w++) total[r][w] += a[r][i] * row[w];
  }
  for (int r = 0; r < BLOCK; r++)
    for (int w = 0; w < WIDTH; w++) store(out[r] + column + w * V, total[r][w]);
}

void multiply(const float* const* a, int64_t depth, const float* b, int64_t stride,
              int64_t columns, float* const* out) {
  int64_t c = 0;
  for (; c + 2 * V <= columns; c += 2 * V) multiply_columns<2>(a, depth, b, stride, out, c);
  if (c < columns) multiply_columns<1>(a, depth, b, stride, out, c);
}

// What the queries of one head and image (or window) attend to, packed for `multiply`.
class Context {
 public:
  Context(int64_t count, int64_t depth)
      : count_(count), depth_(depth), wide_(round_up(count)), deep_(round_up(depth)),
        keys_transposed_(depth * wide_), values_(count * deep_) {
    for (int64_t i = 0; i < V; i++) tail_[i] = wide_ - V + i < count_ ? 0.f : -INFINITY;
  }

  void pack(Rows keys, Rows values) {
    for (int64_t j = 0; j < count_; j++) {
      for (int64_t i = 0; i < depth_; i++) keys_transposed_[i * wide_ + j] = keys[j][i];
      for (int64_t i = 0; i < depth_; i += V)
        store(&values_[j * deep_ + i], load(values[j] + i, depth_ - i));
    }
  }

  // Softmax over the keys of queries keys^T * scale + mask, for BLOCK queries (`depth` numbers
  // each), into rows of `wide()` numbers, those past `count` being 0, but not yet divided by their
  // sum: `norms` receives what to multiply each row with.
  void weigh(const float* const* queries, float scale, const float* const* mask,
             float* const* weights, float* norms) const {
    compare(queries, weights);
    for (int r = 0; r < BLOCK; r++) {
      float* row = weights[r];
      Vec highest = fill(-INFINITY);
      for (int64_t j = 0; j < wide_; j += V) {
        Vec score = load(row + j) * scale;
        if (mask) score += load(mask[r] + j, count_ - j);
        if (j + V > count_) score += tail_;
        store(row + j, score);
        highest = upper(highest, score);
      }
      const float top = maximum(highest);
      Vec total{};
      for (int64_t j = 0; j < wide_; j += V) {
        const Vec e = exponential(load(row + j) - top);
        store(row + j, e);
        total += e;
      }
      norms[r] = 1.f / sum(total);
    }
  }

  // weights values, into rows of `deep()` numbers.
  void average(const float* const* weights, float* const* out) const {
    multiply(weights, count_, values_.data(), deep_, deep_, out);
  }

  // rows keys^T, into rows of `wide()` numbers.
  void compare(const float* const* rows, float* const* out) const {
    multiply(rows, depth_, keys_transposed_.data(), wide_, wide_, out);
  }

  int64_t wide() const { return wide_; }
  int64_t deep() const { return deep_; }

 private:
  int64_t count_, depth_, wide_, deep_;
  Numbers keys_transposed_, values_;
  Vec tail_;  // added to the last scores: those that belong to no key
};

// BLOCK rows of `width` numbers each.
class Block {
 public:
  explicit Block(int64_t width) : numbers_(BLOCK * width) {
    for (int r = 0; r < BLOCK; r++) rows_[r] = &numbers_[r * width];
  }
  float* const* rows() { return rows_; }
  const float* const* rows() const { return rows_; }

 private:
  Numbers numbers_;
  float* rows_[BLOCK];
};

// Calls use(first, n) for the queries, BLOCK at a time.
template <class Use>
void by_blocks(int64_t count, const Use& use) {
  for (int64_t first = 0; first < count; first += BLOCK)
    use(first, int(std::min<int64_t>(BLOCK, count - first)));
}

// Scratch memory and arithmetic of one head: its queries, keys and values have `depth` numbers.
class Head {
 public:
  Head(int64_t context, int64_t depth)
      : count_(context), depth_(depth), scale_(float(1 / std::sqrt(double(depth)))),
        context_(context, depth), weights_(context_.wide()), out_(context_.deep()) {}

  // `out` rows = attention of the queries over what was packed. `mask`: (count, count) or null.
  void forward(Rows queries, int64_t count, const float* mask, float* out,
               const int64_t* out_offsets) {
    by_blocks(count, [&](int64_t first, int n) {
      weigh(queries, first, n, mask);
      context_.average(weights_.rows(), out_.rows());
      for (int r = 0; r < n; r++) {
        float* target = out + out_offsets[first + r];
        for (int64_t c = 0; c < depth_; c += V)
          store(target + c, load(out_.rows()[r] + c) * norms_[r], depth_ - c);
      }
    });
  }

  void pack(Rows keys, Rows values) { context_.pack(keys, values); }

 protected:
  // Attention weights of queries first .. first + n, to be multiplied with `norms_`.
  void weigh(Rows queries, int64_t first, int n, const float* mask) {
    const float *rows[BLOCK], *masks[BLOCK];
    for (int r = 0; r < BLOCK; r++) {
      const int64_t i = first + std::min(r, n - 1);  // a short block repeats its last query
      rows[r] = queries[i];
      masks[r] = mask ? mask + i * count_ : nullptr;
    }
    context_.weigh(rows, scale_, mask ? masks : nullptr, weights_.rows(), norms_);
  }

  int64_t count_, depth_;
  float scale_;
  Context context_;
  Block weights_, out_;
  float norms_[BLOCK];
};

// Adds weights^T rows to out: out[j][...] += sum over r < n of weights[r][j] * rows[r][...].
void add_transposed(const float* const* weights, const float* const* rows, int n, int64_t count,
                    int64_t depth, int64_t deep, float* out) {
  for (int64_t c = 0; c < depth; c += V) {
    Vec row[BLOCK];
    for (int r = 0; r < BLOCK; r++) row[r] = r < n ? load(rows[r] + c, depth - c) : Vec{};
    for (int64_t j = 0; j < count; j++) {
      Vec total = load(out + j * deep + c);
      for (int r = 0; r < BLOCK; r++) total += weights[r][j] * row[r];
      store(out + j * deep + c, total);
    }
  }
}

// The gradient of a head. The weights are made again, which is cheaper than keeping them.
class HeadGradient : Head {
 public:
  HeadGradient(int64_t context, int64_t depth)
      : Head(context, depth), values_as_keys_(context, depth), by_scores_(context_.wide()),
        by_keys_(context * context_.deep()), by_values_(context * context_.deep()) {}

  void pack(Rows keys, Rows values) {
    context_.pack(keys, values);
    // Two more products of the same form: gradients times values^T, and times keys.
    values_as_keys_.pack(values, keys);
    std::fill(by_keys_.begin(), by_keys_.end(), 0.f);
    std::fill(by_values_.begin(), by_values_.end(), 0.f);
  }

  void backward(Rows queries, Rows gradients, int64_t count, const float* mask, float* by_queries,
                const int64_t* offsets) {
    by_blocks(count, [&](int64_t first, int n) {
      weigh(queries, first, n, mask);
      const float *query[BLOCK], *gradient[BLOCK];
      for (int r = 0; r < BLOCK; r++) {
        query[r] = queries[first + std::min(r, n - 1)];
        gradient[r] = gradients[first + std::min(r, n - 1)];
      }
      const int64_t deep = context_.deep(), wide = context_.wide();
      for (int r = 0; r < BLOCK; r++)
        for (int64_t j = 0; j < wide; j += V)
          store(weights_.rows()[r] + j, load(weights_.rows()[r] + j) * norms_[r]);
      add_transposed(weights_.rows(), gradient, n, count_, depth_, deep, by_values_.data());
      // d scores = weights * (d weights - sum(weights * d weights)), and the scale.
      values_as_keys_.compare(gradient, by_scores_.rows());
      for (int r = 0; r < BLOCK; r++) {
        float *d = by_scores_.rows()[r], *w = weights_.rows()[r];
        Vec total{};
        for (int64_t j = 0; j < wide; j += V) total += load(d + j) * load(w + j);
        const float mean = sum(total);
        for (int64_t j = 0; j < wide; j += V)
          store(d + j, load(w + j) * (load(d + j) - mean) * scale_);
      }
      add_transposed(by_scores_.rows(), query, n, count_, depth_, deep, by_keys_.data());
      values_as_keys_.average(by_scores_.rows(), out_.rows());
      for (int r = 0; r < n; r++)
        std::memcpy(by_queries + offsets[first + r], out_.rows()[r], depth_ * sizeof(float));
    });
  }

  // Writes what `backward` has added up.
  void unpack(float* by_keys, float* by_values, const int64_t* offsets) const {
    for (int64_t j = 0; j < count_; j++) {
      std::memcpy(by_keys + offsets[j], &by_keys_[j * context_.deep()], depth_ * sizeof(float));
      std::memcpy(by_values + offsets[j], &by_values_[j * context_.deep()], depth_ * sizeof(float));
    }
  }

 private:
  Context values_as_keys_;
  Block by_scores_;
  Numbers by_keys_, by_values_;
};

}  // namespace

extern "C" {

// How many threads the kernels may use, the calling one included.
void mindtwins_set_threads(int count) { thread_count = std::max(1, count); }

// Whether this processor has the instructions that the library was compiled for.
int mindtwins_supported() {
#if defined(__x86_64__)
#ifdef __AVX2__
  if (!__builtin_cpu_supports("avx2")) return 0;
#endif
#ifdef __FMA__
  if (!__builtin_cpu_supports("fma")) return 0;
#endif
#ifdef __AVX512F__
  if (!__builtin_cpu_supports("avx512f")) return 0;
#endif
#endif
  return 1;
}

// x (..., C), bias (C,) -> GELU of x + bias
OPERATOR(bias_gelu, "fff") {
  const float *x = INPUT(0), *bias = INPUT(1);
  float* y = OUTPUT(2);
  const int64_t channels = shapes[1][0];
  parallel(product(shapes[0], ranks[0]) / channels, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        const Vec v = load(x + at, n) + load(bias + c, n);
        store(y + at, v * normal_distribution(v), n);
      }
  });
  return 0;
}

// dy, x, bias -> dx, dbias
OPERATOR(bias_gelu_gradient, "fffff") {
  const float *dy = INPUT(0), *x = INPUT(1), *bias = INPUT(2);
  float* dx = OUTPUT(3);
  const int64_t channels = shapes[2][0], rows = product(shapes[1], ranks[1]) / channels;
  sum_rows<1>(rows, channels, [&](int64_t row, int64_t c, Vec* terms) {
    const int64_t n = channels - c, at = row * channels + c;
    const Vec v = load(x + at, n) + load(bias + c, n);
    const Vec density = exponential(v * v * -0.5f) * 0.398942280f;
    terms[0] = load(dy + at, n) * (normal_distribution(v) + v * density);
    store(dx + at, terms[0], n);
  }, {OUTPUT(4)});
  return 0;
}

// x (..., C), gamma, beta, epsilon (1,) -> y
OPERATOR(layer_norm, "fffff") {
  const float *x = INPUT(0), *gamma = INPUT(1), *beta = INPUT(2), epsilon = *INPUT(3);
  float* y = OUTPUT(4);
  const int64_t channels = shapes[1][0];
  parallel(product(shapes[0], ranks[0]) / channels, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * channels;
      const Moments m = moments(in, channels, epsilon);
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c;
        const Vec normal = (load(in + c, n) - m.mean) * m.rstd;
        store(y + row * channels + c, normal * load(gamma + c, n) + load(beta + c, n), n);
      }
    }
  });
  return 0;
}

// dy, x, gamma, epsilon (1,) -> dx, dgamma, dbeta
OPERATOR(layer_norm_gradient, "fffffff") {
  const float *dy = INPUT(0), *x = INPUT(1), *gamma = INPUT(2), epsilon = *INPUT(3);
  float* dx = OUTPUT(4);
  const int64_t channels = shapes[2][0], rows = product(shapes[1], ranks[1]) / channels;
  const int64_t padded = round_up(channels);
  Numbers partials((rows + ROWS - 1) / ROWS * 2 * padded);
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    float* by_gamma = &partials[begin / ROWS * 2 * padded];
    float* by_beta = by_gamma + padded;
    for (int64_t row = begin; row < end; row++) {
      const float *in = x + row * channels, *d = dy + row * channels;
      const Moments m = moments(in, channels, epsilon);
      Vec total{}, weighted{};
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c;
        const Vec normal = (load(in + c, n) - m.mean) * m.rstd, g = load(d + c, n);
        store(by_gamma + c, load(by_gamma + c) + g * normal);
        store(by_beta + c, load(by_beta + c) + g);
        const Vec scaled = g * load(gamma + c, n);
        total += scaled;
        weighted += scaled * normal;
      }
      const float mean = sum(total) / channels, slope = sum(weighted) / channels;
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c;
        const Vec normal = (load(in + c, n) - m.mean) * m.rstd;
        const Vec scaled = load(d + c, n) * load(gamma + c, n);
        store(dx + row * channels + c, (scaled - mean - normal * slope) * m.rstd, n);
      }
    }
  });
  add_partials(partials, 2 * padded, 0, channels, OUTPUT(5));
  add_partials(partials, 2 * padded, padded, channels, OUTPUT(6));
  return 0;
}

// x (..., C), bias (C,) -> y
OPERATOR(add_bias, "fff") {
  const float *x = INPUT(0), *bias = INPUT(1);
  float* y = OUTPUT(2);
  const int64_t channels = shapes[1][0];
  parallel(product(shapes[0], ranks[0]) / channels, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        store(y + at, load(x + at, n) + load(bias + c, n), n);
      }
  });
  return 0;
}

// dy (..., C), bias -> dbias: the sum over all but the channels
OPERATOR(add_bias_gradient, "fff") {
  const float* dy = INPUT(0);
  const int64_t channels = shapes[1][0], rows = product(shapes[0], ranks[0]) / channels;
  sum_rows<1>(rows, channels, [&](int64_t row, int64_t c, Vec* terms) {
    terms[0] = load(dy + row * channels + c, channels - c);
  }, {OUTPUT(2)});
  return 0;
}

// x (B, ..., C), factors (B, C) -> x * factors
OPERATOR(scale, "fff") {
  const float *x = INPUT(0), *factors = INPUT(1);
  float* y = OUTPUT(2);
  const int64_t images = shapes[1][0], channels = shapes[1][1];
  const int64_t rows = product(shapes[0], ranks[0]) / channels;
  parallel(rows, ROWS, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* factor = factors + row * images / rows * channels;
      for (int64_t c = 0; c < channels; c += V) {
        const int64_t n = channels - c, at = row * channels + c;
        store(y + at, load(x + at, n) * load(factor + c, n), n);
      }
    }
  });
  return 0;
}

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
  Numbers partials((lines + LINES - 1) / LINES * 10 * padded);
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
  Numbers taps(9 * channels);
  for (int tap = 0; tap < 9; tap++)
    add_partials(partials, 10 * padded, tap * padded, channels, &taps[tap * channels]);
  for (int64_t i = 0; i < 9 * channels; i++) OUTPUT(4)[i] = taps[i % 9 * channels + i / 9];
  add_partials(partials, 10 * padded, 9 * padded, channels, OUTPUT(5));
  return 0;
}

}  // extern "C"

namespace {

// The windows of a map (B, H, W, C), H and W multiples of the window's side.
struct Windows {
  Windows(const int64_t* shape, const int32_t* heads_and_side)
      : heads(heads_and_side[0]), side(heads_and_side[1]), rows(shape[1] / side),
        columns(shape[2] / side), tokens(side * side), count(shape[0] * rows * columns) {}

  // Number of the token in the upper left corner of a window.
  int64_t corner(int64_t window) const {
    const int64_t line = window / columns;  // of windows, through all images
    return (line * side * columns + window % columns) * side;
  }

  // Where the window's tokens start, as seen from its first; each token has `stride` numbers.
  std::vector<int64_t> offsets(int64_t stride) const {
    std::vector<int64_t> all(tokens);
    for (int64_t i = 0; i < tokens; i++)
      all[i] = (i / side * columns * side + i % side) * stride;
    return all;
  }

  // The mask (1, windows, 1, tokens, tokens) of a window, or null: without one it has rank 1.
  const float* mask(const float* masks, int rank, int64_t window) const {
    return rank == 1 ? nullptr : masks + window % (rows * columns) * tokens * tokens;
  }

  int64_t heads, side, rows, columns, tokens, count;
};

// Offsets of `count` consecutive tokens.
std::vector<int64_t> consecutive(int64_t count, int64_t stride) {
  std::vector<int64_t> all(count);
  for (int64_t i = 0; i < count; i++) all[i] = i * stride;
  return all;
}

}  // namespace

extern "C" {

// qkv (B, H, W, 3 C), mask, heads and side -> (B, H, W, C)
OPERATOR(window_attention, "ffif") {
  const Windows windows(shapes[0], static_cast<const int32_t*>(params[2]));
  const int64_t channels = shapes[0][3] / 3, depth = channels / windows.heads;
  const auto in = windows.offsets(3 * channels), out = windows.offsets(channels);
  parallel(windows.count * windows.heads, HEADS, [&](int64_t begin, int64_t end) {
    Head head(windows.tokens, depth);
    for (int64_t i = begin; i < end; i++) {
      const int64_t window = i / windows.heads, h = i % windows.heads;
      const int64_t corner = windows.corner(window);
      const float* q = INPUT(0) + corner * 3 * channels + h * depth;
      head.pack({q + channels, in.data()}, {q + 2 * channels, in.data()});
      head.forward({q, in.data()}, windows.tokens, windows.mask(INPUT(1), ranks[1], window),
                   OUTPUT(3) + corner * channels + h * depth, out.data());
    }
  });
  return 0;
}

// gradient (B, H, W, C), qkv (B, H, W, 3 C), mask, heads and side -> gradient of qkv
OPERATOR(window_attention_gradient, "fffif") {
  const Windows windows(shapes[1], static_cast<const int32_t*>(params[3]));
  const int64_t channels = shapes[1][3] / 3, depth = channels / windows.heads;
  const auto in = windows.offsets(3 * channels), out = windows.offsets(channels);
  parallel(windows.count * windows.heads, HEADS, [&](int64_t begin, int64_t end) {
    HeadGradient head(windows.tokens, depth);
    for (int64_t i = begin; i < end; i++) {
      const int64_t window = i / windows.heads, h = i % windows.heads;
      const int64_t corner = windows.corner(window), at = corner * 3 * channels + h * depth;
      const float* q = INPUT(1) + at;
      head.pack({q + channels, in.data()}, {q + 2 * channels, in.data()});
      float* dq = OUTPUT(4) + at;
      head.backward({q, in.data()}, {INPUT(0) + corner * channels + h * depth, out.data()},
                    windows.tokens, windows.mask(INPUT(2), ranks[2], window), dq, in.data());
      head.unpack(dq + channels, dq + 2 * channels, in.data());
    }
  });
  return 0;
}

// q (B, H, W, C), kv (B, h, w, 2 C), heads -> (B, H, W, C)
OPERATOR(global_attention, "ffif") {
  const int64_t heads = *static_cast<const int32_t*>(params[2]), channels = shapes[0][3];
  const int64_t depth = channels / heads, tokens = shapes[0][1] * shapes[0][2];
  const int64_t summary = shapes[1][1] * shapes[1][2];
  const auto in = consecutive(tokens, channels), context = consecutive(summary, 2 * channels);
  const int64_t chunks = (tokens + QUERIES - 1) / QUERIES;
  parallel(shapes[0][0] * heads * chunks, 1, [&](int64_t begin, int64_t end) {
    Head head(summary, depth);
    for (int64_t i = begin; i < end; i++) {
      const int64_t h = i / chunks % heads, image = i / chunks / heads;
      const int64_t first = i % chunks * QUERIES, count = std::min(QUERIES, tokens - first);
      const float* k = INPUT(1) + image * summary * 2 * channels + h * depth;
      head.pack({k, context.data()}, {k + channels, context.data()});
      const int64_t at = (image * tokens + first) * channels + h * depth;
      head.forward({INPUT(0) + at, in.data()}, count, nullptr, OUTPUT(3) + at, in.data());
    }
  });
  return 0;
}

// gradient (B, H, W, C), q, kv, heads -> gradients of q and kv
OPERATOR(global_attention_gradient, "fffiff") {
  const int64_t heads = *static_cast<const int32_t*>(params[3]), channels = shapes[1][3];
  const int64_t depth = channels / heads, tokens = shapes[1][1] * shapes[1][2];
  const int64_t summary = shapes[2][1] * shapes[2][2];
  const auto in = consecutive(tokens, channels), context = consecutive(summary, 2 * channels);
  parallel(shapes[1][0] * heads, 1, [&](int64_t begin, int64_t end) {
    HeadGradient head(summary, depth);
    for (int64_t i = begin; i < end; i++) {
      const int64_t at = i / heads * tokens * channels + i % heads * depth;
      const int64_t at_context = i / heads * summary * 2 * channels + i % heads * depth;
      const float* k = INPUT(2) + at_context;
      head.pack({k, context.data()}, {k + channels, context.data()});
      head.backward({INPUT(1) + at, in.data()}, {INPUT(0) + at, in.data()}, tokens, nullptr,
                    OUTPUT(4) + at, in.data());
      float* dk = OUTPUT(5) + at_context;
      head.unpack(dk, dk + channels, context.data());
    }
  });
  return 0;
}

}  // extern "C"
