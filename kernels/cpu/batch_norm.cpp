#include "lepton/batch_norm.hpp"

#include "lepton/simd.hpp"

#include <algorithm>

namespace lepton {
namespace {

constexpr std::int64_t kRows =
    4;  // rows added to each other first: fewer trips to the sums, shorter chains of additions

LEPTON_SIMD void moments(const float* __restrict x, std::int64_t n, std::int64_t channels, double* __restrict sum,
                         double* __restrict squares) {
  const float* const origin = x;
  std::int64_t row = 0;
  for (; row + kRows <= n; row += kRows, x += kRows * channels) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const double shift = origin[c];
      const double a = x[c] - shift;
      const double b = x[c + channels] - shift;
      const double d = x[c + 2 * channels] - shift;
      const double e = x[c + 3 * channels] - shift;
      sum[c] += (a + b) + (d + e);
      squares[c] += (a * a + b * b) + (d * d + e * e);
    }
  }
  for (; row < n; ++row, x += channels) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const double a = x[c] - static_cast<double>(origin[c]);
      sum[c] += a;
      squares[c] += a * a;
    }
  }
}

LEPTON_SIMD void affine(const float* __restrict x, std::int64_t n, std::int64_t channels, const float* __restrict mean,
                        const float* __restrict scale, const float* __restrict shift, float* __restrict y) {
  for (std::int64_t row = 0; row < n; ++row, x += channels, y += channels) {
    for (std::int64_t c = 0; c < channels; ++c) y[c] = (x[c] - mean[c]) * scale[c] + shift[c];
  }
}

LEPTON_SIMD void gradient_sums(const float* __restrict dy, const float* __restrict x, std::int64_t n,
                               std::int64_t channels, const double* __restrict mean, double* __restrict sum_dy,
                               double* __restrict sum_dy_x) {
  std::int64_t row = 0;
  for (; row + kRows <= n; row += kRows, x += kRows * channels, dy += kRows * channels) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const double a = dy[c];
      const double b = dy[c + channels];
      const double d = dy[c + 2 * channels];
      const double e = dy[c + 3 * channels];
      sum_dy[c] += (a + b) + (d + e);
      sum_dy_x[c] += (a * (x[c] - mean[c]) + b * (x[c + channels] - mean[c])) +
                     (d * (x[c + 2 * channels] - mean[c]) + e * (x[c + 3 * channels] - mean[c]));
    }
  }
  for (; row < n; ++row, x += channels, dy += channels) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const double a = dy[c];
      sum_dy[c] += a;
      sum_dy_x[c] += a * (x[c] - mean[c]);
    }
  }
}

LEPTON_SIMD void gradient(const float* __restrict dy, const float* __restrict x, std::int64_t n, std::int64_t channels,
                          const float* __restrict mean, const float* __restrict scale, const float* __restrict slope,
                          const float* __restrict shift, float* __restrict dx) {
  for (std::int64_t row = 0; row < n; ++row, x += channels, dy += channels, dx += channels) {
    for (std::int64_t c = 0; c < channels; ++c) dx[c] = dy[c] * scale[c] + ((x[c] - mean[c]) * slope[c] + shift[c]);
  }
}

}  // namespace

void channel_moments(const float* x, std::int64_t n, std::int64_t channels, double* mean, double* squares) {
  std::fill(mean, mean + channels, 0.0);
  std::fill(squares, squares + channels, 0.0);
  moments(x, n, channels, mean, squares);
  const auto count = static_cast<double>(n);
  for (std::int64_t c = 0; c < channels; ++c) {
    const double distance = mean[c] / count;
    squares[c] = std::max(squares[c] - mean[c] * distance, 0.0);
    mean[c] = x[c] + distance;
  }
}

void channel_affine(const float* x, std::int64_t n, std::int64_t channels, const float* mean, const float* scale,
                    const float* shift, float* y) {
  affine(x, n, channels, mean, scale, shift, y);
}

void channel_gradient_sums(const float* dy, const float* x, std::int64_t n, std::int64_t channels, const double* mean,
                           double* sum_dy, double* sum_dy_x) {
  std::fill(sum_dy, sum_dy + channels, 0.0);
  std::fill(sum_dy_x, sum_dy_x + channels, 0.0);
  gradient_sums(dy, x, n, channels, mean, sum_dy, sum_dy_x);
}

void channel_gradient(const float* dy, const float* x, std::int64_t n, std::int64_t channels, const float* mean,
                      const float* scale, const float* slope, const float* shift, float* dx) {
  gradient(dy, x, n, channels, mean, scale, slope, shift, dx);
}

}  // namespace lepton
