#include "lepton/images.hpp"

#include "lepton/simd.hpp"

#include <algorithm>

namespace lepton {
namespace {

inline void copy(const float* from, std::int64_t n, float* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}

inline void add(const float* from, std::int64_t n, float* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Calls run(pixel, tap, n) for runs of n values that lie side by side in the image and in the window at (h, w):
// a whole tap row where taps are neighbours and all channels are wanted, else one tap.
template <class Run>
inline void for_each_run(const Windows& g, const WindowRange& range, std::int64_t h, std::int64_t w, const Run& run) {
  const std::int64_t depth = range.last_channel - range.first_channel;
  const Taps rows = g.inside(0, h);
  const Taps columns = g.inside(1, w);
  if (columns.first == columns.last) return;
  const bool side_by_side = g.dilation[1] == 1 && depth == g.channels;
  for (std::int64_t i = rows.first; i < rows.last; ++i) {
    const std::int64_t line = (h + i * g.dilation[0]) * g.width;
    if (side_by_side) {
      run((line + w + columns.first) * depth, (i * g.kernel[1] + columns.first) * depth,
          (columns.last - columns.first) * depth);
      continue;
    }
    for (std::int64_t j = columns.first; j < columns.last; ++j) {
      run((line + w + j * g.dilation[1]) * g.channels + range.first_channel, (i * g.kernel[1] + j) * depth, depth);
    }
  }
}

inline bool is_whole(const Windows& g, std::int64_t h, std::int64_t w) {
  return h >= 0 && w >= 0 && h + (g.kernel[0] - 1) * g.dilation[0] < g.height &&
         w + (g.kernel[1] - 1) * g.dilation[1] < g.width;
}

LEPTON_SIMD void gather(const float* __restrict x, const Windows& g, const WindowRange& range, float* __restrict to) {
  const std::int64_t size = g.kernel[0] * g.kernel[1] * (range.last_channel - range.first_channel);
  const std::int64_t num_columns = g.count(1);
  for (std::int64_t b = range.first_image; b < range.last_image; ++b) {
    const float* image = x + b * g.height * g.width * g.channels;
    for (std::int64_t row = range.first_row; row < range.last_row; ++row) {
      for (std::int64_t column = 0; column < num_columns; ++column, to += size) {
        const std::int64_t h = row * g.stride[0] - g.padding[0];
        const std::int64_t w = column * g.stride[1] - g.padding[1];
        if (!is_whole(g, h, w)) std::fill(to, to + size, 0.0F);
        for_each_run(g, range, h, w,
                     [&](std::int64_t pixel, std::int64_t tap, std::int64_t n) { copy(image + pixel, n, to + tap); });
      }
    }
  }
}

LEPTON_SIMD void scatter(const float* __restrict from, const Windows& g, const WindowRange& range,
                         float* __restrict dx) {
  const std::int64_t size = g.kernel[0] * g.kernel[1] * (range.last_channel - range.first_channel);
  const std::int64_t num_columns = g.count(1);
  for (std::int64_t b = range.first_image; b < range.last_image; ++b) {
    float* image = dx + b * g.height * g.width * g.channels;
    for (std::int64_t row = range.first_row; row < range.last_row; ++row) {
      for (std::int64_t column = 0; column < num_columns; ++column, from += size) {
        const std::int64_t h = row * g.stride[0] - g.padding[0];
        const std::int64_t w = column * g.stride[1] - g.padding[1];
        for_each_run(g, range, h, w,
                     [&](std::int64_t pixel, std::int64_t tap, std::int64_t n) { add(from + tap, n, image + pixel); });
      }
    }
  }
}

LEPTON_SIMD void keep_larger(const float* __restrict x, std::int64_t n, std::int32_t place, float* __restrict y,
                             std::int32_t* __restrict places) {
  for (std::int64_t c = 0; c < n; ++c) {
    // A NaN takes the place of any number and keeps it.
    const bool larger = (x[c] > y[c]) | ((x[c] != x[c]) & (y[c] == y[c]));
    y[c] = larger ? x[c] : y[c];
    places[c] = larger ? place : places[c];
  }
}

}  // namespace

void im2col(const float* x, const Windows& windows, const WindowRange& range, float* columns) {
  gather(x, windows, range, columns);
}

void col2im_add(const float* columns, const Windows& windows, const WindowRange& range, float* dx) {
  scatter(columns, windows, range, dx);
}

void max_pool2d(const float* x, const Windows& windows, float* y, std::int32_t* places) {
  const Windows& g = windows;
  const std::int64_t num_rows = g.count(0);
  const std::int64_t num_columns = g.count(1);
  for (std::int64_t b = 0; b < g.num_images; ++b, x += g.height * g.width * g.channels) {
    for (std::int64_t row = 0; row < num_rows; ++row) {
      for (std::int64_t column = 0; column < num_columns; ++column, y += g.channels, places += g.channels) {
        const std::int64_t h = row * g.stride[0] - g.padding[0];
        const std::int64_t w = column * g.stride[1] - g.padding[1];
        const Taps taps_h = g.inside(0, h);
        const Taps taps_w = g.inside(1, w);
        bool first = true;
        for (std::int64_t i = taps_h.first; i < taps_h.last; ++i) {
          for (std::int64_t j = taps_w.first; j < taps_w.last; ++j) {
            const std::int64_t place = (h + i * g.dilation[0]) * g.width + w + j * g.dilation[1];
            const float* pixel = x + place * g.channels;
            if (first) {
              std::copy(pixel, pixel + g.channels, y);
              std::fill(places, places + g.channels, static_cast<std::int32_t>(place));
              first = false;
            } else {
              keep_larger(pixel, g.channels, static_cast<std::int32_t>(place), y, places);
            }
          }
        }
      }
    }
  }
}

bool max_pool2d_backward_add(const float* dy, const std::int32_t* places, std::int64_t num_images,
                             std::int64_t num_windows, std::int64_t num_pixels, std::int64_t channels, float* dx) {
  for (std::int64_t b = 0; b < num_images; ++b, dx += num_pixels * channels) {
    for (std::int64_t window = 0; window < num_windows; ++window, dy += channels, places += channels) {
      for (std::int64_t c = 0; c < channels; ++c) {
        if (places[c] < 0 || places[c] >= num_pixels) return false;
        dx[places[c] * channels + c] += dy[c];
      }
    }
  }
  return true;
}

}  // namespace lepton
