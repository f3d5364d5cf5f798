// Attention within windows and of one map to another, together with the transposes around it, on
// channels-last tokens (B, H, W, C): a window and head at a time, so that scores stay in the cache.
// float32.

#include "common.h"

using namespace mindtwins;

namespace {

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
  void attention_weights(const float* const* queries, float scale, const float* const* mask,
                         float* const* weights, float* norms) const {
    dot_products(queries, weights);
    for (int r = 0; r < BLOCK; r++) {
      float* row = weights[r];
      Vec highest = broadcast(-INFINITY);
      for (int64_t j = 0; j < wide_; j += V) {
        Vec score = load(row + j) * scale;
        if (mask) score += load(mask[r] + j, count_ - j);
        if (j + V > count_) score += tail_;
        store(row + j, score);
        highest = maximum(highest, score);
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
  void weighted_sum(const float* const* weights, float* const* out) const {
    multiply(weights, count_, values_.data(), deep_, deep_, out);
  }

  // rows keys^T, into rows of `wide()` numbers.
  void dot_products(const float* const* rows, float* const* out) const {
    multiply(rows, depth_, keys_transposed_.data(), wide_, wide_, out);
  }

  int64_t wide() const { return wide_; }
  int64_t deep() const { return deep_; }

 private:
  int64_t count_, depth_, wide_, deep_;
  Buffer keys_transposed_, values_;
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
  Buffer numbers_;
  float* rows_[BLOCK];
};

// Calls use(first, n) for the queries, BLOCK at a time.
template <class Use>
void each_block(int64_t count, const Use& use) {
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
    each_block(count, [&](int64_t first, int n) {
      attention_weights(queries, first, n, mask);
      context_.weighted_sum(weights_.rows(), out_.rows());
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
  void attention_weights(Rows queries, int64_t first, int n, const float* mask) {
    const float *rows[BLOCK], *masks[BLOCK];
    for (int r = 0; r < BLOCK; r++) {
      const int64_t i = first + std::min(r, n - 1);  // a short block repeats its last query
      rows[r] = queries[i];
      masks[r] = mask ? mask + i * count_ : nullptr;
    }
    context_.attention_weights(rows, scale_, mask ? masks : nullptr, weights_.rows(), norms_);
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
      : Head(context, depth), values_as_keys_(context, depth), dscores_(context_.wide()),
        dkeys_(context * context_.deep()), dvalues_(context * context_.deep()) {}

  void pack(Rows keys, Rows values) {
    context_.pack(keys, values);
    // Two more products of the same form: gradients times values^T, and times keys.
    values_as_keys_.pack(values, keys);
    std::fill(dkeys_.begin(), dkeys_.end(), 0.f);
    std::fill(dvalues_.begin(), dvalues_.end(), 0.f);
  }

  void backward(Rows queries, Rows gradients, int64_t count, const float* mask, float* dqueries,
                const int64_t* offsets) {
    each_block(count, [&](int64_t first, int n) {
      attention_weights(queries, first, n, mask);
      const float *query[BLOCK], *gradient[BLOCK];
      for (int r = 0; r < BLOCK; r++) {
        query[r] = queries[first + std::min(r, n - 1)];
        gradient[r] = gradients[first + std::min(r, n - 1)];
      }
      const int64_t deep = context_.deep(), wide = context_.wide();
      for (int r = 0; r < BLOCK; r++)
        for (int64_t j = 0; j < wide; j += V)
          store(weights_.rows()[r] + j, load(weights_.rows()[r] + j) * norms_[r]);
      add_transposed(weights_.rows(), gradient, n, count_, depth_, deep, dvalues_.data());
      // d scores = weights * (d weights - sum(weights * d weights)), and the scale.
      values_as_keys_.dot_products(gradient, dscores_.rows());
      for (int r = 0; r < BLOCK; r++) {
        float *d = dscores_.rows()[r], *w = weights_.rows()[r];
        Vec total{};
        for (int64_t j = 0; j < wide; j += V) total += load(d + j) * load(w + j);
        const float mean = sum(total);
        for (int64_t j = 0; j < wide; j += V)
          store(d + j, load(w + j) * (load(d + j) - mean) * scale_);
      }
      add_transposed(dscores_.rows(), query, n, count_, depth_, deep, dkeys_.data());
      values_as_keys_.weighted_sum(dscores_.rows(), out_.rows());
      for (int r = 0; r < n; r++)
        std::memcpy(dqueries + offsets[first + r], out_.rows()[r], depth_ * sizeof(float));
    });
  }

  // Writes what `backward` has added up.
  void unpack(float* dkeys, float* dvalues, const int64_t* offsets) const {
    for (int64_t j = 0; j < count_; j++) {
      std::memcpy(dkeys + offsets[j], &dkeys_[j * context_.deep()], depth_ * sizeof(float));
      std::memcpy(dvalues + offsets[j], &dvalues_[j * context_.deep()], depth_ * sizeof(float));
    }
  }

 private:
  Context values_as_keys_;
  Block dscores_;
  Buffer dkeys_, dvalues_;
};

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

// dy (B, H, W, C), qkv (B, H, W, 3 C), mask, heads and side -> dqkv
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

// dy (B, H, W, C), q, kv, heads -> dq, dkv
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
