#include "lepton/images.hpp"
#include "lepton/simd.hpp"

#include <algorithm>
#include <vector>

namespace lepton {
namespace {

// Calls visit(window, pixel, tap) for every tap inside of an image, with the offsets of their channels.
template <class Visit>
inline void for_each_tap(const Windows& g, const Visit& visit) {
  const std::int64_t num_rows = g.count(0);
  const std::int64_t num_columns = g.count(1);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const std::int64_t h = row * g.stride[0] - g.padding[0];
    const Taps taps_h = g.inside(0, h);
    for (std::int64_t column = 0; column < num_columns; ++column) {
      const std::int64_t w = column * g.stride[1] - g.padding[1];
      const Taps taps_w = g.inside(1, w);
      for (std::int64_t i = taps_h.first; i < taps_h.last; ++i) {
        for (std::int64_t j = taps_w.first; j < taps_w.last; ++j) {
          const std::int64_t pixel = (h + i * g.dilation[0]) * g.width + w + j * g.dilation[1];
          visit((row * num_columns + column) * g.channels, pixel * g.channels, (i * g.kernel[1] + j) * g.channels);
        }
      }
    }
  }
}

// The same, all windows of a row under one tap after the other: sums over taps then do not wait for each other.
template <class Visit>
inline void for_each_window(const Windows& g, const Visit& visit) {
  const std::int64_t num_rows = g.count(0);
  const std::int64_t num_columns = g.count(1);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const std::int64_t h = row * g.stride[0] - g.padding[0];
    const Taps taps_h = g.inside(0, h);
    for (std::int64_t i = taps_h.first; i < taps_h.last; ++i) {
      const std::int64_t line = (h + i * g.dilation[0]) * g.width;
      for (std::int64_t j = 0; j < g.kernel[1]; ++j) {
        const std::int64_t tap = (i * g.kernel[1] + j) * g.channels;
        std::int64_t w = j * g.dilation[1] - g.padding[1];
        for (std::int64_t column = 0; column < num_columns; ++column, w += g.stride[1]) {
          if (w >= 0 && w < g.width) visit((row * num_columns + column) * g.channels, (line + w) * g.channels, tap);
        }
      }
    }
  }
}

inline void multiply_add(const float* __restrict a, const float* __restrict b, std::int64_t n, float* __restrict to) {
  for (std::int64_t c = 0; c < n; ++c) to[c] += a[c] * b[c];
}

LEPTON_SIMD void forward_image(const float* x, const float* weight, const Windows& g, float* y) {
  for_each_window(g, [&](std::int64_t window, std::int64_t pixel, std::int64_t tap) {
    multiply_add(x + pixel, weight + tap, g.channels, y + window);
  });
}

LEPTON_SIMD void backward_input_image(const float* dy, const float* weight, const Windows& g, float* dx) {
  for_each_window(g, [&](std::int64_t window, std::int64_t pixel, std::int64_t tap) {
    multiply_add(dy + window, weight + tap, g.channels, dx + pixel);
  });
}

LEPTON_SIMD void backward_weight_image(const float* dy, const float* x, const Windows& g, float* dweight) {
  for_each_tap(g, [&](std::int64_t window, std::int64_t pixel, std::int64_t tap) {
    multiply_add(dy + window, x + pixel, g.channels, dweight + tap);
  });
}

std::int64_t image_values(const Windows& g) { return g.height * g.width * g.channels; }

std::int64_t output_values(const Windows& g) { return g.count(0) * g.count(1) * g.channels; }

}  // namespace

void depthwise_conv2d(const float* x, const float* weight, const Windows& windows, float* y) {
  std::fill(y, y + windows.num_images * output_values(windows), 0.0F);
  for (std::int64_t b = 0; b < windows.num_images; ++b) {
    forward_image(x + b * image_values(windows), weight, windows, y + b * output_values(windows));
  }
}

void depthwise_backward_input_add(const float* dy, const float* weight, const Windows& windows, float* dx) {
  for (std::int64_t b = 0; b < windows.num_images; ++b) {
    backward_input_image(dy + b * output_values(windows), weight, windows, dx + b * image_values(windows));
  }
}

void depthwise_backward_weight_add(const float* dy, const float* x, const Windows& windows, float* dweight) {
  std::vector<float> sum(static_cast<std::size_t>(windows.kernel[0] * windows.kernel[1] * windows.channels));
  for (std::int64_t b = 0; b < windows.num_images; ++b) {
    std::fill(sum.begin(), sum.end(), 0.0F);
    backward_weight_image(dy + b * output_values(windows), x + b * image_values(windows), windows, sum.data());
    for (std::size_t i = 0; i < sum.size(); ++i) dweight[i] += sum[i];
  }
}

}  // namespace lepton
