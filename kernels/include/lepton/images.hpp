// Windows that slide over images, as convolutions and pooling use them. Images are channels-last: [B, H, W, C].
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace lepton {

using Pair = std::array<std::int64_t, 2>;  // of height and width

// A range of the taps of a window along one dim; last is excluded, and equal to first where there are none.
struct Taps {
  std::int64_t first, last;
};

// The shape of a batch of images, and the windows over each of them.
struct Windows {
  std::int64_t num_images;
  std::int64_t height;
  std::int64_t width;
  std::int64_t channels;
  Pair kernel;
  Pair stride;
  Pair padding;
  Pair dilation;

  // Number of windows along a dim (0 height, 1 width); not positive where none fits.
  std::int64_t count(int dim) const {
    const std::int64_t length = dim == 0 ? height : width;
    const std::int64_t reach = dilation[dim] * (kernel[dim] - 1) + 1;
    return length + 2 * padding[dim] < reach ? 0 : (length + 2 * padding[dim] - reach) / stride[dim] + 1;
  }

  // The taps inside of the image of a window whose first tap is at `origin`, which is negative in the padding.
  Taps inside(int dim, std::int64_t origin) const {
    const std::int64_t length = dim == 0 ? height : width;
    const std::int64_t step = dilation[dim];
    const std::int64_t last = origin >= length ? 0 : std::min((length - origin + step - 1) / step, kernel[dim]);
    return {std::min(origin >= 0 ? 0 : (step - 1 - origin) / step, last), last};
  }
};

// A part of the windows: rows of them of some images, and some channels of each.
struct WindowRange {
  std::int64_t first_image, last_image;
  std::int64_t first_row, last_row;
  std::int64_t first_channel, last_channel;
};

// columns[image, row, window of the row, tap row, tap column, channel] = the pixel under that tap, 0 in the padding.
void im2col(const float* x, const Windows& windows, const WindowRange& range, float* columns);

// The adjoint: adds every value of columns to the pixel that it came from, windows in order.
void col2im_add(const float* columns, const Windows& windows, const WindowRange& range, float* dx);

// y [B, OH, OW, C]: largest pixel of each window, NaN if there is one; places: its row * W + column, the first if
// several.
void max_pool2d(const float* x, const Windows& windows, float* y, std::int32_t* places);

// Adds dy [B, num_windows, C] to dx [B, num_pixels, C] at the places. Returns false, with dx half done, if one is
// outside.
bool max_pool2d_backward_add(const float* dy, const std::int32_t* places, std::int64_t num_images,
                             std::int64_t num_windows, std::int64_t num_pixels, std::int64_t channels, float* dx);

// Convolution with one filter for each channel, weight [taps, C]: overwrites y [B, OH, OW, C].
void depthwise_conv2d(const float* x, const float* weight, const Windows& windows, float* y);

// Adds the gradient of the input to dx [B, H, W, C], row of windows after row, tap after tap.
void depthwise_backward_input_add(const float* dy, const float* weight, const Windows& windows, float* dx);

// Adds the gradient of the weight to dweight [taps, C]: each image's sum over its windows, images in order.
void depthwise_backward_weight_add(const float* dy, const float* x, const Windows& windows, float* dweight);

}  // namespace lepton
