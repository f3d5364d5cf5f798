// RoIAlign (He et al. 2017, "Mask R-CNN", https://arxiv.org/abs/1703.06870) on the maps
// (B, H, W, C) of a pyramid, as mmcv has it with `aligned` and an adaptive grid. float32.

#include "common.h"

using namespace mindtwins;

namespace {

constexpr int LEVELS = 4;

// Where a sample lies on an axis: between two pixels, each with its weight, 0 outside of the map.
struct Sample {
  int64_t low, high;
  float at_low, at_high;
};

Sample sample(float at, int64_t length) {
  if (!(at >= -1.f && at <= float(length))) return {0, 0, 0.f, 0.f};
  at = std::max(at, 0.f);
  const int64_t low = std::min(int64_t(at), length - 1);
  if (low == length - 1) return {low, low, 1.f, 0.f};
  const float fraction = at - float(low);
  return {low, low + 1, 1.f - fraction, fraction};
}

// A pixel's place on an axis or in a map, and how much it counts.
struct Tap {
  int64_t pixel;
  float weight;
};

// One side of a region: the pixels of each bin, which are those of `grid` samples. A pixel of several
// samples is there once.
struct Side {
  Side(float begin, float end, int64_t bins, int64_t length) : starts(bins + 1) {
    const float start = begin - .5f, extent = (end - .5f) - start;
    const float bin = extent / float(bins);
    if (!(std::isfinite(start) && std::isfinite(extent) && extent > 0)) return;
    grid = int64_t(std::ceil(bin));
    for (int64_t i = 0; i < bins; i++) {
      for (int64_t j = 0; j < grid; j++) {
        const float at = start + float(i) * bin + (float(j) + .5f) * bin / float(grid);
        const Sample found = sample(at, length);
        add(found.low, found.at_low, starts[i]);
        add(found.high, found.at_high, starts[i]);
      }
      starts[i + 1] = int64_t(taps.size());
    }
  }

  // The pixel may be one of the last two of the bin, since samples go upward.
  void add(int64_t pixel, float weight, int64_t first) {
    if (weight == 0) return;
    for (int64_t i = int64_t(taps.size()); i-- > std::max(first, int64_t(taps.size()) - 2);)
      if (taps[i].pixel == pixel) {
        taps[i].weight += weight;
        return;
      }
    taps.push_back({pixel, weight});
  }

  int64_t grid = 0;
  std::vector<int64_t> starts;  // of the bins among the taps
  std::vector<Tap> taps;
};

// A row (image, level, x1, y1, x2, y2) of the regions, in pixels of its level.
struct Region {
  Region(const float* row, int64_t** shapes, int64_t bins_down, int64_t bins_across) {
    const float image = row[0];
    const int found = row[1] >= 0 && row[1] < LEVELS ? int(row[1]) : -1;
    if (found < 0 || !(image >= 0 && image < float(shapes[found][0]))) return;
    const int64_t* shape = shapes[found];
    const Side rows(row[3], row[5], bins_down, shape[1]);
    const Side columns(row[2], row[4], bins_across, shape[2]);
    level = found;
    offset = int64_t(image) * shape[1] * shape[2] * shape[3];
    line = shape[2] * shape[3];
    down = rows;
    across = columns;
    share = 1.f / float(std::max<int64_t>(rows.grid * columns.grid, 1));
  }

  // What is averaged in a bin: pixels and their weights.
  void find_taps(int64_t bin_y, int64_t bin_x, int64_t channels, std::vector<Tap>& taps) const {
    taps.clear();
    for (int64_t i = down.starts[bin_y]; i < down.starts[bin_y + 1]; i++)
      for (int64_t j = across.starts[bin_x]; j < across.starts[bin_x + 1]; j++) {
        const Tap &y = down.taps[i], &x = across.taps[j];
        taps.push_back({offset + y.pixel * line + x.pixel * channels, y.weight * x.weight * share});
      }
  }

  int level = -1;  // none: all of its bins are 0
  int64_t offset = 0, line = 0;
  Side down{0, 0, 0, 0}, across{0, 0, 0, 0};
  float share = 0;
};

constexpr int VECTORS = 4;             // that are summed side by side
constexpr int64_t BAND = VECTORS * V;  // channels per chunk of the gradient
constexpr size_t RUN = 64;             // taps whose sum is made in one part: rounding adds up

// The weighted sum of pixels, for COUNT vectors of channels from `map` on, the last of `n` channels.
template <int COUNT>
void sum_taps(const std::vector<Tap>& taps, const float* map, float* out, int64_t n) {
  Vec totals[COUNT] = {};
  for (size_t first = 0; first < taps.size(); first += RUN) {
    Vec sums[COUNT] = {};
    for (size_t t = first; t < std::min(taps.size(), first + RUN); t++)
      for (int i = 0; i < COUNT; i++)
        sums[i] += load(map + taps[t].pixel + i * V, i + 1 < COUNT ? V : n) * taps[t].weight;
    for (int i = 0; i < COUNT; i++) totals[i] += sums[i];
  }
  for (int i = 0; i < COUNT; i++) store(out + i * V, totals[i], i + 1 < COUNT ? V : n);
}

}  // namespace

// Four maps (B, H_i, W_i, C), regions (N, 6), any matrix (bins down, bins across)
// -> (N, bins down, bins across, C)
OPERATOR(roi_align, "fffffff") {
  const int64_t channels = shapes[0][3], down = shapes[5][0], across = shapes[5][1];
  parallel(shapes[4][0], 4, [&](int64_t begin, int64_t end) {
    std::vector<Tap> taps;
    for (int64_t n = begin; n < end; n++) {
      const Region region(INPUT(4) + 6 * n, shapes, down, across);
      float* out = OUTPUT(6) + n * down * across * channels;
      if (region.level < 0) {
        std::fill_n(out, down * across * channels, 0.f);
        continue;
      }
      const float* map = INPUT(region.level);
      for (int64_t bin = 0; bin < down * across; bin++, out += channels) {
        region.find_taps(bin / across, bin % across, channels, taps);
        int64_t c = 0;
        for (; c + BAND <= channels; c += BAND) sum_taps<VECTORS>(taps, map + c, out + c, V);
        for (; c < channels; c += V) sum_taps<1>(taps, map + c, out + c, channels - c);
      }
    }
  });
  return 0;
}

// dy (N, bins down, bins across, C), the maps (for their shapes), the regions -> d maps
OPERATOR(roi_align_gradient, "ffffffffff") {
  const int64_t count = shapes[0][0], down = shapes[0][1], across = shapes[0][2];
  const int64_t channels = shapes[0][3];
  std::vector<Region> regions;
  for (int64_t n = 0; n < count; n++)
    regions.emplace_back(INPUT(5) + 6 * n, shapes + 1, down, across);
  for (int level = 0; level < LEVELS; level++)
    std::fill_n(OUTPUT(6 + level), product(shapes[1 + level], 4), 0.f);
  // By channels, so that no two threads add to one number.
  parallel(channels, BAND, [&](int64_t begin, int64_t end) {
    std::vector<Tap> taps;
    for (int64_t n = 0; n < count; n++) {
      const Region& region = regions[n];
      if (region.level < 0) continue;
      const float* dy = INPUT(0) + n * down * across * channels;
      float* map = OUTPUT(6 + region.level);
      for (int64_t bin = 0; bin < down * across; bin++, dy += channels) {
        region.find_taps(bin / across, bin % across, channels, taps);
        for (const Tap& tap : taps)
          for (int64_t c = begin; c < end; c += V) {
            float* target = map + tap.pixel + c;
            store(target, load(target, end - c) + load(dy + c, end - c) * tap.weight, end - c);
          }
      }
    }
  });
  return 0;
}
