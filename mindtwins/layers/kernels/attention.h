// Attention of queries to what one head has of a window or an image. float32.

#pragma once

#include "product.h"

namespace mindtwins {

// Queries that share one pass over the keys: their sums fill the registers.
constexpr int ABREAST = V == 16 ? 8 : 6;
constexpr int64_t QUERIES = 64;  // of an image that a thread takes

// Rows of a matrix that lie anywhere: row i starts at base + offsets[i].
struct Rows {
  const float* base;
  const int64_t* offsets;
  const float* operator[](int64_t i) const { return base + offsets[i]; }
};

// Offsets of `count` consecutive tokens.
inline std::vector<int64_t> consecutive(int64_t count, int64_t stride) {
  std::vector<int64_t> all(count);
  for (int64_t i = 0; i < count; i++) all[i] = i * stride;
  return all;
}

// out[r][0..columns) = sum over i of a[r][i] * b[i * stride ...], for ABREAST rows; `columns` is a
// multiple of V. The heart of attention: all its products have this form.
template <int WIDTH>
inline void multiply_columns(const float* const* a, int64_t depth, const float* b, int64_t stride,
                             float* const* out, int64_t column) {
  Vec total[ABREAST][WIDTH] = {};
  for (int64_t i = 0; i < depth; i++) {
    Vec row[WIDTH];
    for (int w = 0; w < WIDTH; w++) row[w] = load(b + i * stride + column + w * V);
    for (int r = 0; r < ABREAST; r++)
      for (int w = 0; w < WIDTH; w++) total[r][w] += a[r][i] * row[w];
  }
  for (int r = 0; r < ABREAST; r++)
    for (int w = 0; w < WIDTH; w++) store(out[r] + column + w * V, total[r][w]);
}

inline void multiply_rows(const float* const* a, int64_t depth, const float* b, int64_t stride,
                          int64_t columns, float* const* out) {
  int64_t c = 0;
  for (; c + 2 * V <= columns; c += 2 * V) multiply_columns<2>(a, depth, b, stride, out, c);
  if (c < columns) multiply_columns<1>(a, depth, b, stride, out, c);
}

// What the queries of one head and image (or window) attend to, packed for `multiply_rows`.
class Context {
 public:
  Context(int64_t count, int64_t depth)
      : count_(count), depth_(depth), wide_(round_up(count)), deep_(round_up(depth)),
        keys_transposed_(depth * wide_), values_(count * deep_) {
    for (int64_t i = 0; i < V; i++) tail_[i] = wide_ - V + i < count_ ? 0.f : -INFINITY;
  }

  void pack(Rows keys, Rows values) {
    for (int64_t j = 0; j < count_; j += V)
      for (int64_t i = 0; i < depth_; i += V) {
        Vec square[V];
        for (int lane = 0; lane < V; lane++)
          square[lane] = j + lane < count_ ? load(keys[j + lane] + i, depth_ - i) : Vec{};
        transpose(square);
        for (int64_t lane = 0; lane < std::min<int64_t>(V, depth_ - i); lane++)
          store(&keys_transposed_[(i + lane) * wide_ + j], square[lane]);
      }
    for (int64_t j = 0; j < count_; j++)
      for (int64_t i = 0; i < depth_; i += V)
        store(&values_[j * deep_ + i], load(values[j] + i, depth_ - i));
  }

  // Softmax over the keys of queries keys^T * scale + mask, for ABREAST queries (`depth` numbers
  // each), into rows of `wide()` numbers, those past `count` being 0, but not yet divided by their
  // sum: `norms` receives what to multiply each row with.
  void attention_weights(const float* const* queries, float scale, const float* const* mask,
                         float* const* weights, float* norms) const {
    dot_products(queries, weights);
    for (int r = 0; r < ABREAST; r++) {
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
    multiply_rows(weights, count_, values_.data(), deep_, deep_, out);
  }

  // rows keys^T, into rows of `wide()` numbers.
  void dot_products(const float* const* rows, float* const* out) const {
    multiply_rows(rows, depth_, keys_transposed_.data(), wide_, wide_, out);
  }

  int64_t wide() const { return wide_; }
  int64_t deep() const { return deep_; }

 private:
  int64_t count_, depth_, wide_, deep_;
  Buffer keys_transposed_, values_;
  Vec tail_;  // added to the last scores: those that belong to no key
};

// ABREAST rows of `width` numbers each.
class Block {
 public:
  explicit Block(int64_t width) : numbers_(ABREAST * width) {
    for (int r = 0; r < ABREAST; r++) rows_[r] = numbers_.data() + r * width;
  }
  float* const* rows() { return rows_; }

 private:
  Scratch numbers_;
  float* rows_[ABREAST];
};

// Calls use(first, n) for the queries, ABREAST at a time.
template <class Use>
void each_block(int64_t count, const Use& use) {
  for (int64_t first = 0; first < count; first += ABREAST)
    use(first, int(std::min<int64_t>(ABREAST, count - first)));
}

// The context of one head, whose queries, keys and values have `depth` numbers, and its arithmetic.
class Head {
 public:
  Head(int64_t context, int64_t depth)
      : count_(context), depth_(depth), scale_(float(1 / std::sqrt(double(depth)))),
        context_(context, depth) {}

  void pack(Rows keys, Rows values) { context_.pack(keys, values); }

  // `out` rows, which may be the queries', = attention of the queries over what was packed. `mask`:
  // (count, count) or null.
  void forward(Rows queries, int64_t count, const float* mask, float* out,
               const int64_t* out_offsets) const {
    Block weights(context_.wide()), sums(context_.deep());
    float norms[ABREAST];
    each_block(count, [&](int64_t first, int n) {
      attention_weights(queries, first, n, mask, weights, norms);
      context_.weighted_sum(weights.rows(), sums.rows());
      for (int r = 0; r < n; r++) {
        float* target = out + out_offsets[first + r];
        for (int64_t c = 0; c < depth_; c += V)
          store(target + c, load(sums.rows()[r] + c) * norms[r], depth_ - c);
      }
    });
  }

 protected:
  // Attention weights of queries first .. first + n, to be multiplied with `norms`.
  void attention_weights(Rows queries, int64_t first, int n, const float* mask, Block& weights,
                         float* norms) const {
    const float *rows[ABREAST], *masks[ABREAST];
    for (int r = 0; r < ABREAST; r++) {
      const int64_t i = first + std::min(r, n - 1);  // a short block repeats its last query
      rows[r] = queries[i];
      masks[r] = mask ? mask + i * count_ : nullptr;
    }
    context_.attention_weights(rows, scale_, mask ? masks : nullptr, weights.rows(), norms);
  }

  int64_t count_, depth_;
  float scale_;
  Context context_;
};

}  // namespace mindtwins
