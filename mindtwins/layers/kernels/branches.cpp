// The attention of a block as one operator, with the norm before it and the residual after it, on
// channels-last tokens (B, H, W, C). float32.
//
// The tokens are normalized in another order, square by square: then windows, and the patches of a
// sub-sampling, are rows of a matrix. What else lies between is made for a window, or for some
// queries of an image, at a time, so that it stays in the cache. With few tokens in all the threads
// make each product together instead; see `multiply_few`.

#include "attention.h"
#include "layer_norm.h"

using namespace mindtwins;

namespace {

constexpr int64_t TOKENS = 4096;  // of whole images that are normalized together, or of one image
constexpr int64_t SOME = 49;      // tokens of an image that a thread takes, about

struct Norm {
  const float *gamma, *beta;
  float epsilon;
};

struct Linear {
  const float *weight, *bias;
};

// The sub-sampling of what is attended to: a convolution with stride = kernel = side, and a norm.
struct Subsampling {
  int64_t side;
  Linear convolution;
  Norm norm;
};

// The pixels of maps (batch, height, width): those of each square of a map, row by row, -1 for what
// a square has beyond the map. `rows` x `columns` squares; what is not in any comes last.
std::vector<int64_t> by_squares(const int64_t* shape, int64_t side, int64_t rows, int64_t columns) {
  const int64_t height = shape[1], width = shape[2];
  std::vector<int64_t> pixels;
  pixels.reserve(shape[0] * (rows * columns * side * side + height * width));
  for (int64_t image = 0; image < shape[0]; image++) {
    const auto pixel = [&](int64_t y, int64_t x) { return (image * height + y) * width + x; };
    for (int64_t row = 0; row < rows; row++)
      for (int64_t column = 0; column < columns; column++)
        for (int64_t y = row * side; y < (row + 1) * side; y++)
          for (int64_t x = column * side; x < (column + 1) * side; x++)
            pixels.push_back(y < height && x < width ? pixel(y, x) : -1);
    for (int64_t y = 0; y < height; y++)
      for (int64_t x = y < rows * side ? columns * side : 0; x < width; x++)
        pixels.push_back(pixel(y, x));
  }
  return pixels;
}

// Some pixels of x, normalized, in rows `stride` apart; zeros where there is none.
void normalize_pixels(const float* x, const Norm& norm, int64_t channels, const int64_t* pixels,
                      int64_t count, float* to, int64_t stride) {
  for (int64_t i = 0; i < count; i++, to += stride)
    if (pixels[i] < 0)
      std::fill(to, to + channels, 0.f);
    else
      normalize(x + pixels[i] * channels, norm.gamma, norm.beta, norm.epsilon, channels, to);
}


Output<Identity> rows_to(float* data, int64_t columns, int64_t stride, const float* bias) {
  return {data, columns, stride, bias, nullptr};
}

// What the queries of some images attend to: the heads' keys and values, made of normalized tokens.
class Contexts {
 public:
  // For at most `group` of `batch` images at a time; `tokens` in the map, or patches of it.
  Contexts(int64_t batch, int64_t group, int64_t tokens, int64_t channels, const Linear& linear,
           int64_t heads, const Subsampling* subsampling)
      : tokens_(tokens), channels_(channels), heads_(heads), linear_(linear),
        subsampling_(subsampling), offsets_(consecutive(tokens, 2 * channels)),
        numbers_(group * tokens * 2 * channels),
        reduced_(subsampling ? group * tokens * channels : 0) {
    const bool whole = group < batch || batch * tokens > FEW;
    to_keys_and_values_.emplace(rows_of(linear.weight, channels), 2 * channels, channels, whole);
    if (subsampling) {
      // The patches' numbers are in the order of pixels, the weight's in that of channels.
      const int64_t pixels = subsampling->side * subsampling->side, depth = pixels * channels;
      const Matrix weight{subsampling->convolution.weight, depth, 1, pixels};
      reduce_.emplace(weight, channels, depth, whole);
    }
    for (int64_t i = 0; i < group * heads; i++) packed_.emplace_back(tokens, channels / heads);
  }

  void pack(const float* normal, int64_t images) {
    const float* source = subsampling_ ? reduce(normal, images * tokens_) : normal;
    const int64_t width = 2 * channels_, depth = channels_ / heads_;
    to_keys_and_values_->multiply(rows_of(source, channels_), images * tokens_,
                                  rows_to(numbers_.data(), width, width, linear_.bias));
    parallel(images * heads_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const float* keys = numbers_.data() + i / heads_ * tokens_ * width + i % heads_ * depth;
        packed_[i].pack({keys, offsets_.data()}, {keys + channels_, offsets_.data()});
      }
    });
  }

  const Head& head(int64_t image, int64_t head) const { return packed_[image * heads_ + head]; }

 private:
  const float* reduce(const float* normal, int64_t rows) {
    const auto& [side, convolution, norm] = *subsampling_;
    float* to = reduced_.data();
    reduce_->multiply(rows_of(normal, side * side * channels_), rows,
                      rows_to(to, channels_, channels_, convolution.bias));
    parallel(rows, 16, [&, &norm = norm](int64_t begin, int64_t end) {
      for (float* row = to + begin * channels_; begin < end; begin++, row += channels_)
        normalize(row, norm.gamma, norm.beta, norm.epsilon, channels_, row);
    });
    return to;
  }

  int64_t tokens_, channels_, heads_;
  Linear linear_;
  const Subsampling* subsampling_;
  std::vector<int64_t> offsets_;
  Scratch numbers_, reduced_;
  std::optional<Weight> to_keys_and_values_, reduce_;
  std::vector<Head> packed_;
};

// y = x + the attention of norm(x) to all of its image, sub-sampled if told so. 0, or 1 if nothing
// is left to attend to.
int attend_globally(const float* x, const int64_t* shape, const Norm& norm, const Linear& q,
                    const Linear& kv, const Linear& proj, int64_t heads,
                    const Subsampling* subsampling, float* y) {
  const int64_t batch = shape[0], tokens = shape[1] * shape[2], channels = shape[3];
  const int64_t side = subsampling ? subsampling->side : 1, stride = apart(channels);
  const int64_t rows = shape[1] / side, columns = shape[2] / side;
  if (batch == 0) return 0;
  if (rows * columns == 0) return 1;
  // Patches of two images follow each other only if nothing is left over.
  const bool fills = rows * columns * side * side == tokens;
  const int64_t group = fills ? std::clamp<int64_t>(TOKENS / tokens, 1, batch) : 1;
  const auto pixels = by_squares(shape, side, rows, columns);
  const auto offsets = consecutive(tokens, stride);
  const Matrix to_query = rows_of(q.weight, channels), to_output = rows_of(proj.weight, channels);
  std::optional<Packed> into, out_of;
  const bool few = batch * tokens <= FEW;
  if (!few) {
    into.emplace(to_query, channels, channels);
    out_of.emplace(to_output, channels, channels);
  }
  Scratch normal(group * tokens * channels);
  Contexts contexts(batch, group, rows * columns, channels, kv, heads, subsampling);
  // In the place of the queries.
  const auto attend = [&](int64_t image, int64_t head, int64_t count, float* queries) {
    queries += head * (channels / heads);
    contexts.head(image, head)
        .forward({queries, offsets.data()}, count, nullptr, queries, offsets.data());
  };

  for (int64_t first = 0; first < batch; first += group) {
    const int64_t images = std::min(group, batch - first), all = images * tokens;
    const int64_t* places = pixels.data() + first * tokens;
    const Output<Identity> output{y, channels, channels, proj.bias, x, places};
    parallel(all, 16, [&](int64_t begin, int64_t end) {
      normalize_pixels(x, norm, channels, places + begin, end - begin,
                       normal.data() + begin * channels, channels);
    });
    contexts.pack(normal.data(), images);
    if (few) {
      Scratch queries(all * stride);
      multiply_few(rows_of(normal.data(), channels), all, to_query, channels, channels,
                   rows_to(queries.data(), channels, stride, q.bias));
      const int64_t chunks = (tokens + QUERIES - 1) / QUERIES;
      parallel(images * heads * chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
          const int64_t image = i / chunks / heads, start = i % chunks * QUERIES;
          attend(image, i / chunks % heads, std::min(QUERIES, tokens - start),
                 queries.data() + (image * tokens + start) * stride);
        }
      });
      multiply_few({queries.data(), stride, 1}, all, to_output, channels, channels, output);
      continue;
    }
    const int64_t parts = std::max<int64_t>(1, (tokens + SOME / 2) / SOME);
    parallel(images * parts, 1, [&](int64_t begin, int64_t end) {
      Scratch queries((tokens / parts + 1) * stride);
      for (int64_t i = begin; i < end; i++) {
        const int64_t start = i % parts * tokens / parts, row = i / parts * tokens + start;
        const int64_t count = (i % parts + 1) * tokens / parts - start;
        into->multiply(rows_of(normal.data() + row * channels, channels), 0, count,
                       rows_to(queries.data(), channels, stride, q.bias));
        for (int64_t head = 0; head < heads; head++) attend(i / parts, head, count, queries.data());
        out_of->multiply({queries.data(), stride, 1}, row, count, output);
      }
    });
  }
  return 0;
}

}  // namespace

// x (B, H, W, C), gamma, beta, weight (3 C, C) and bias of queries, keys and values, weight (C, C)
// and bias of the projection, mask, heads and side, any matrix (side, side), epsilon
// -> x + attention of norm(x) within windows
OPERATOR(window_branch, "ffffffffifff") {
  const float *x = INPUT(0), *masks = INPUT(7);
  const Norm norm{INPUT(1), INPUT(2), *INPUT(10)};
  const Linear qkv{INPUT(3), INPUT(4)}, proj{INPUT(5), INPUT(6)};
  const int64_t heads = static_cast<const int32_t*>(params[8])[0], side = shapes[9][0];
  const int64_t channels = shapes[0][3], depth = channels / heads, tokens = side * side;
  if (shapes[3][0] != 3 * channels || shapes[3][1] != channels) return 1;
  const int64_t rows = (shapes[0][1] + side - 1) / side, columns = (shapes[0][2] + side - 1) / side;
  const int64_t count = shapes[0][0] * rows * columns, stride = apart(3 * channels);
  if (count == 0) return 0;
  const auto pixels = by_squares(shapes[0], side, rows, columns);
  const auto offsets = consecutive(tokens, stride);
  const Matrix to_qkv = rows_of(qkv.weight, channels), to_output = rows_of(proj.weight, channels);

  const auto normalize_window = [&](int64_t window, float* to) {
    normalize_pixels(x, norm, channels, pixels.data() + window * tokens, tokens, to,
                     apart(channels));
  };
  const auto attend = [&](int64_t window, int64_t h, Head& head, float* queries) {
    queries += h * depth;
    head.pack({queries + channels, offsets.data()}, {queries + 2 * channels, offsets.data()});
    const float* mask =
        ranks[7] == 1 ? nullptr : masks + window % (rows * columns) * tokens * tokens;
    head.forward({queries, offsets.data()}, tokens, mask, queries, offsets.data());
  };
  const Output<Identity> output{OUTPUT(11), channels, channels, proj.bias, x, pixels.data()};

  if (count * tokens <= FEW) {
    Scratch between(count * tokens * stride), normal(count * tokens * apart(channels));
    parallel(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t window = begin; window < end; window++)
        normalize_window(window, normal.data() + window * tokens * apart(channels));
    });
    multiply_few({normal.data(), apart(channels), 1}, count * tokens, to_qkv, 3 * channels,
                 channels, rows_to(between.data(), 3 * channels, stride, qkv.bias));
    parallel(count * heads, 1, [&](int64_t begin, int64_t end) {
      Head head(tokens, depth);
      for (int64_t i = begin; i < end; i++)
        attend(i / heads, i % heads, head, between.data() + i / heads * tokens * stride);
    });
    multiply_few({between.data(), stride, 1}, count * tokens, to_output, channels, channels,
                 output);
    return 0;
  }
  const Packed into(to_qkv, 3 * channels, channels), out_of(to_output, channels, channels);
  parallel(count, 1, [&](int64_t begin, int64_t end) {
    Scratch between(tokens * stride), normal(tokens * apart(channels));
    Head head(tokens, depth);
    for (int64_t window = begin; window < end; window++) {
      normalize_window(window, normal.data());
      into.multiply({normal.data(), apart(channels), 1}, 0, tokens,
                    rows_to(between.data(), 3 * channels, stride, qkv.bias));
      for (int64_t h = 0; h < heads; h++) attend(window, h, head, between.data());
      out_of.multiply({between.data(), stride, 1}, window * tokens, tokens, output);
    }
  });
  return 0;
}

// x (B, H, W, C), gamma, beta, weights (C, C), (2 C, C) and (C, C) of queries, of keys and values,
// and of the projection, with their biases, heads, epsilon -> x + attention of norm(x) to all of it
OPERATOR(global_branch, "fffffffffiff") {
  const int64_t channels = shapes[0][3];
  if (shapes[3][1] != channels || shapes[5][1] != channels) return 1;
  return attend_globally(INPUT(0), shapes[0], {INPUT(1), INPUT(2), *INPUT(10)},
                         {INPUT(3), INPUT(4)}, {INPUT(5), INPUT(6)}, {INPUT(7), INPUT(8)},
                         *static_cast<const int32_t*>(params[9]), nullptr, OUTPUT(11));
}

// The same with the weight (C, C, k, k), the bias, gamma and beta of a sub-sampling of what is
// attended to, before the heads, and its epsilon
OPERATOR(subsampled_branch, "fffffffffffffifff") {
  const int64_t channels = shapes[0][3];
  if (shapes[3][1] != channels || shapes[5][1] != channels || shapes[9][1] != channels) return 1;
  const Subsampling subsampling{
      shapes[9][2], {INPUT(9), INPUT(10)}, {INPUT(11), INPUT(12), *INPUT(15)}};
  return attend_globally(INPUT(0), shapes[0], {INPUT(1), INPUT(2), *INPUT(14)},
                         {INPUT(3), INPUT(4)}, {INPUT(5), INPUT(6)}, {INPUT(7), INPUT(8)},
                         *static_cast<const int32_t*>(params[13]), &subsampling, OUTPUT(16));
}
