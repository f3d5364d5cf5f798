// Attention within windows and of one map to another, together with the transposes around it, on
// channels-last tokens (B, H, W, C): a window and head at a time, so that scores stay in the cache.
// float32.

#include "attention.h"

using namespace mindtwins;

namespace {

constexpr int64_t HEADS = 8;  // per chunk of window attention

// Adds weights^T rows to out: out[j][...] += sum over r < n of weights[r][j] * rows[r][...].
void add_transposed(const float* const* weights, const float* const* rows, int n, int64_t count,
                    int64_t depth, int64_t deep, float* out) {
  for (int64_t c = 0; c < depth; c += V) {
    Vec row[ABREAST];
    for (int r = 0; r < ABREAST; r++) row[r] = r < n ? load(rows[r] + c, depth - c) : Vec{};
    for (int64_t j = 0; j < count; j++) {
      Vec total = load(out + j * deep + c);
      for (int r = 0; r < ABREAST; r++) total += weights[r][j] * row[r];
      store(out + j * deep + c, total);
    }
  }
}

// The gradient of a head. The weights are made again, which is cheaper than keeping them.
class HeadGradient : Head {
 public:
  HeadGradient(int64_t context, int64_t depth)
      : Head(context, depth), values_as_keys_(context, depth),
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
    Block weights(context_.wide()), dscores(context_.wide()), sums(context_.deep());
    float norms[ABREAST];
    each_block(count, [&](int64_t first, int n) {
      attention_weights(queries, first, n, mask, weights, norms);
      const float *query[ABREAST], *gradient[ABREAST];
      for (int r = 0; r < ABREAST; r++) {
        query[r] = queries[first + std::min(r, n - 1)];
        gradient[r] = gradients[first + std::min(r, n - 1)];
      }
      const int64_t deep = context_.deep(), wide = context_.wide();
      for (int r = 0; r < ABREAST; r++)
        for (int64_t j = 0; j < wide; j += V)
          store(weights.rows()[r] + j, load(weights.rows()[r] + j) * norms[r]);
      add_transposed(weights.rows(), gradient, n, count_, depth_, deep, dvalues_.data());
      // d scores = weights * (d weights - sum(weights * d weights)), and the scale.
      values_as_keys_.dot_products(gradient, dscores.rows());
      for (int r = 0; r < ABREAST; r++) {
        float *d = dscores.rows()[r], *w = weights.rows()[r];
        Vec total{};
        for (int64_t j = 0; j < wide; j += V) total += load(d + j) * load(w + j);
        const float mean = sum(total);
        for (int64_t j = 0; j < wide; j += V)
          store(d + j, load(w + j) * (load(d + j) - mean) * scale_);
      }
      add_transposed(dscores.rows(), query, n, count_, depth_, deep, dkeys_.data());
      values_as_keys_.weighted_sum(dscores.rows(), sums.rows());
      for (int r = 0; r < n; r++)
        std::memcpy(dqueries + offsets[first + r], sums.rows()[r], depth_ * sizeof(float));
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
