// Bilinear resizing of maps (B, H, W, C), and the cross entropy of resized logits. float32.

#include "common.h"

using namespace mindtwins;

namespace {

// --------------------------------------------------------------------------------------- resizing

// One axis of a bilinear resize: each new point lies between two old ones, the second of which
// counts `fraction`. `table` has a row (index of the first, fraction) for each new point.
struct Axis {
  Axis(const float* table, int64_t count, int64_t old) : table(table), count(count), old(old) {}
  int64_t low(int64_t i) const { return int64_t(table[2 * i]); }
  int64_t high(int64_t i) const { return std::min(low(i) + 1, old - 1); }
  float fraction(int64_t i) const { return table[2 * i + 1]; }
  // How much the old point counts in the new one.
  float weight(int64_t i, int64_t point) const {
    return (low(i) == point ? 1 - fraction(i) : 0) + (high(i) == point ? fraction(i) : 0);
  }

  const float* table;
  int64_t count, old;
};

// A map and its resized one: `shape` is the former's (B, H, W, C).
struct Resize {
  Resize(const int64_t* shape, const float* row_table, const int64_t* row_shape,
         const float* column_table, const int64_t* column_shape)
      : rows(row_table, row_shape[0], shape[1]), columns(column_table, column_shape[0], shape[2]),
        images(shape[0]), channels(shape[3]) {}

  // The four pixels of `map` (one image) around a new pixel, and their weights.
  struct Corners {
    const float* pixel[4];
    float weight[4];
    Vec at(int64_t c, int64_t n) const {
      return (load(pixel[0] + c, n) * weight[0] + load(pixel[1] + c, n) * weight[1]) +
             (load(pixel[2] + c, n) * weight[2] + load(pixel[3] + c, n) * weight[3]);
    }
  };
  Corners corners(const float* map, int64_t y, int64_t x) const {
    const int64_t line = columns.old * channels;
    const float *upper = map + rows.low(y) * line, *lower = map + rows.high(y) * line;
    const int64_t left = columns.low(x) * channels, right = columns.high(x) * channels;
    const float down = rows.fraction(y), across = columns.fraction(x);
    return {{upper + left, upper + right, lower + left, lower + right},
            {(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across}};
  }
  const float* image(const float* maps, int64_t index) const {
    return maps + index * rows.old * columns.old * channels;
  }

  Axis rows, columns;
  int64_t images, channels;
};

// ---------------------------------------------------------------------------------- cross entropy

// Logits of the pixels of a resized map, one pixel at a time.
class Pixel {
 public:
  explicit Pixel(int64_t classes) : classes_(classes), numbers_(round_up(classes)) {
    float tail[V];
    for (int64_t i = 0; i < V; i++)
      tail[i] = round_up(classes) - V + i < classes ? 0.f : -INFINITY;
    tail_ = load(tail);
  }

  // Interpolates, and leaves exp(logit - highest) of each class in `exponentials`.
  void take(const Resize::Corners& corners) {
    Vec best = broadcast(-INFINITY);
    for (int64_t c = 0; c < classes_; c += V) {
      Vec z = corners.at(c, classes_ - c);
      if (c + V > classes_) z += tail_;
      store(&numbers_[c], z);
      best = maximum(best, z);
    }
    highest_ = maximum(best);
    Vec total{};
    for (int64_t c = 0; c < classes_; c += V) {
      const Vec e = exponential(load(&numbers_[c]) - highest_);
      store(&numbers_[c], e);
      total += e;
    }
    sum_ = sum(total);
  }

  // -log of the softmax at a logit.
  float loss(float logit) const { return std::log(sum_) - (logit - highest_); }
  const float* exponentials() const { return numbers_.data(); }
  float total() const { return sum_; }

 private:
  int64_t classes_;
  Buffer numbers_;
  Vec tail_;  // added to the last logits: those that belong to no class
  float highest_ = 0, sum_ = 0;
};

constexpr int64_t BAND = 8;  // rows of logits per chunk of the gradient

}  // namespace

// x (B, H, W, C), tables of the new rows (height, 2) and columns (width, 2) -> (B, height, width, C)
OPERATOR(resize_bilinear, "ffff") {
  const Resize resize(shapes[0], INPUT(1), shapes[1], INPUT(2), shapes[2]);
  const int64_t height = resize.rows.count, width = resize.columns.count, channels = shapes[0][3];
  parallel(resize.images * height, 4, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; line++)
      for (int64_t x = 0; x < width; x++) {
        const auto corners =
            resize.corners(resize.image(INPUT(0), line / height), line % height, x);
        float* out = OUTPUT(3) + (line * width + x) * channels;
        for (int64_t c = 0; c < channels; c += V)
          store(out + c, corners.at(c, channels - c), channels - c);
      }
  });
  return 0;
}

// dy (B, height, width, C), x (for its shape), tables -> dx
OPERATOR(resize_bilinear_gradient, "fffff") {
  const Resize resize(shapes[1], INPUT(2), shapes[2], INPUT(3), shapes[3]);
  const int64_t height = resize.rows.count, width = resize.columns.count, channels = shapes[1][3];
  const int64_t line = resize.columns.old * channels;
  parallel(resize.images * resize.rows.old, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const float* gradient = INPUT(0) + item / resize.rows.old * height * width * channels;
      float* dx = OUTPUT(4) + item * line;
      std::fill_n(dx, line, 0.f);
      std::vector<std::pair<const float*, float>> lines;  // those that saw this row, and how much
      for (int64_t y = 0; y < height; y++)
        if (const float weight = resize.rows.weight(y, item % resize.rows.old))
          lines.push_back({gradient + y * width * channels, weight});
      for (int64_t x = 0; x < width; x++) {
        float* left = dx + resize.columns.low(x) * channels;
        float* right = dx + resize.columns.high(x) * channels;
        const float across = resize.columns.fraction(x);
        for (int64_t c = 0; c < channels; c += V) {
          const int64_t n = channels - c;
          Vec total{};
          for (const auto& [d, weight] : lines) total += load(d + x * channels + c, n) * weight;
          store(left + c, load(left + c, n) + total * (1 - across), n);
          store(right + c, load(right + c, n) + total * across, n);
        }
      }
    }
  });
  return 0;
}

// logits (B, H, W, C), labels (B, height, width) int32, tables of the rows and columns
// -> (B, height): for each row of labels the sum of -log softmax(resized logits)[label]. Labels that
// are no class count nothing.
OPERATOR(cross_entropy, "fifff") {
  const Resize resize(shapes[0], INPUT(2), shapes[2], INPUT(3), shapes[3]);
  const auto* labels = static_cast<const int32_t*>(params[1]);
  const int64_t height = resize.rows.count, width = resize.columns.count, classes = shapes[0][3];
  parallel(resize.images * height, 4, [&](int64_t begin, int64_t end) {
    Pixel pixel(classes);
    for (int64_t line = begin; line < end; line++) {
      double total = 0;
      for (int64_t x = 0; x < width; x++) {
        const int32_t label = labels[line * width + x];
        if (label < 0 || label >= classes) continue;
        const auto corners =
            resize.corners(resize.image(INPUT(0), line / height), line % height, x);
        pixel.take(corners);
        total += pixel.loss(corners.at(label, 1)[0]);
      }
      OUTPUT(4)[line] = float(total);
    }
  });
  return 0;
}

// dy (B, height), logits, labels, tables -> dlogits
OPERATOR(cross_entropy_gradient, "ffifff") {
  const Resize resize(shapes[1], INPUT(3), shapes[3], INPUT(4), shapes[4]);
  const auto* labels = static_cast<const int32_t*>(params[2]);
  const int64_t height = resize.rows.count, width = resize.columns.count, classes = shapes[1][3];
  const int64_t old = resize.rows.old, bands = (old + BAND - 1) / BAND;
  parallel(resize.images * bands, 1, [&](int64_t begin, int64_t end) {
    Pixel pixel(classes);
    for (int64_t item = begin; item < end; item++) {
      const int64_t image = item / bands, top = item % bands * BAND;
      const int64_t bottom = std::min(old, top + BAND);
      const float* logits = resize.image(INPUT(1), image);
      float* out = OUTPUT(5) + (logits - INPUT(1));
      const int64_t row = resize.columns.old * classes;
      std::fill(out + top * row, out + bottom * row, 0.f);
      const float *first = logits + top * row, *last = logits + bottom * row;
      for (int64_t y = 0; y < height; y++) {
        if (resize.rows.high(y) < top || resize.rows.low(y) >= bottom) continue;
        const int64_t line = image * height + y;
        for (int64_t x = 0; x < width; x++) {
          const int32_t label = labels[line * width + x];
          if (label < 0 || label >= classes) continue;
          const auto corners = resize.corners(logits, y, x);
          pixel.take(corners);
          const float slope = INPUT(0)[line];
          for (int i = 0; i < 4; i++) {
            if (corners.pixel[i] < first || corners.pixel[i] >= last) continue;
            float* target = out + (corners.pixel[i] - logits);
            const float weight = corners.weight[i] * slope;
            const float share = weight / pixel.total();
            for (int64_t c = 0; c < classes; c += V) {
              const int64_t n = classes - c;
              store(target + c, load(target + c, n) + load(pixel.exponentials() + c) * share, n);
            }
            target[label] -= weight;
          }
        }
      }
    }
  });
  return 0;
}
