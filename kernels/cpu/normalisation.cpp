#include "lepton/normalisation.hpp"

#include "lepton/simd.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace lepton {
namespace {

constexpr std::size_t kNumLanes = 16;
constexpr std::size_t kGroupRows = 64;

inline float add_lanes(float* lanes) {
  for (std::size_t width = kNumLanes / 2; width > 0; width /= 2) {
    for (std::size_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

inline float sum(const float* x, std::size_t n) {
  float lanes[kNumLanes] = {};
  std::size_t i = 0;
  for (; i + kNumLanes <= n; i += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) lanes[lane] += x[i + lane];
  }
  for (std::size_t lane = 0; i < n; ++i, ++lane) lanes[lane] += x[i];
  return add_lanes(lanes);
}

inline float squares_around(const float* x, float mean, std::size_t n) {
  float lanes[kNumLanes] = {};
  std::size_t i = 0;
  for (; i + kNumLanes <= n; i += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) {
      const float centred = x[i + lane] - mean;
      lanes[lane] += centred * centred;
    }
  }
  for (std::size_t lane = 0; i < n; ++i, ++lane) lanes[lane] += (x[i] - mean) * (x[i] - mean);
  return add_lanes(lanes);
}

LEPTON_SIMD void layer_norm_rows(const float* __restrict x, const float* __restrict weight,
                                 const float* __restrict bias, float* __restrict y, float* __restrict means,
                                 float* __restrict rstds, std::size_t rows, std::size_t features, float epsilon) {
  const auto count = static_cast<float>(features);
  for (std::size_t row = 0; row < rows; ++row, x += features, y += features) {
    const float mean = sum(x, features) / count;
    const float rstd = 1.0f / std::sqrt(squares_around(x, mean, features) / count + epsilon);
    means[row] = mean;
    rstds[row] = rstd;
    if (bias != nullptr) {
      for (std::size_t i = 0; i < features; ++i) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
    } else {
      for (std::size_t i = 0; i < features; ++i) y[i] = (x[i] - mean) * rstd * weight[i];
    }
  }
}

LEPTON_SIMD void rms_norm_rows(const float* __restrict x, const float* __restrict weight, float* __restrict y,
                               float* __restrict rstds, std::size_t rows, std::size_t features, float epsilon) {
  const auto count = static_cast<float>(features);
  for (std::size_t row = 0; row < rows; ++row, x += features, y += features) {
    const float rstd = 1.0f / std::sqrt(squares_around(x, 0.0f, features) / count + epsilon);
    rstds[row] = rstd;
    for (std::size_t i = 0; i < features; ++i) y[i] = x[i] * rstd * weight[i];
  }
}

struct RowSums {
  float gradient;    // of dy * weight
  float projection;  // of dy * weight * normalised x
};

// One pass over a row: its sums, and its part of the parameters' gradients.
inline RowSums row_sums(const float* __restrict dy, const float* __restrict x, const float* __restrict weight,
                        float mean, float rstd, float* __restrict dweight, float* __restrict dbias, std::size_t n) {
  float gradients[kNumLanes] = {};
  float projections[kNumLanes] = {};
  std::size_t i = 0;
  for (; i + kNumLanes <= n; i += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) {
      const float normalised = (x[i + lane] - mean) * rstd;
      const float gradient = dy[i + lane] * weight[i + lane];
      gradients[lane] += gradient;
      projections[lane] += gradient * normalised;
      dweight[i + lane] += dy[i + lane] * normalised;
      dbias[i + lane] += dy[i + lane];
    }
  }
  for (std::size_t lane = 0; i < n; ++i, ++lane) {
    const float normalised = (x[i] - mean) * rstd;
    const float gradient = dy[i] * weight[i];
    gradients[lane] += gradient;
    projections[lane] += gradient * normalised;
    dweight[i] += dy[i] * normalised;
    dbias[i] += dy[i];
  }
  return {add_lanes(gradients), add_lanes(projections)};
}

// Layer norm where `centre`, else RMS norm (means is not read then). dx may be null.
LEPTON_SIMD void backward_rows(const float* __restrict dy, const float* __restrict x, const float* __restrict weight,
                               const float* __restrict means, const float* __restrict rstds, float* __restrict dx,
                               float* __restrict dweight, float* __restrict dbias, std::size_t rows,
                               std::size_t features, bool centre) {
  const auto count = static_cast<float>(features);
  for (std::size_t row = 0; row < rows; ++row, x += features, dy += features) {
    const float mean = centre ? means[row] : 0.0f;
    const float rstd = rstds[row];
    const RowSums sums = row_sums(dy, x, weight, mean, rstd, dweight, dbias, features);
    if (dx == nullptr) continue;
    const float shift = centre ? sums.gradient / count : 0.0f;
    const float slope = sums.projection / count * rstd;
    for (std::size_t i = 0; i < features; ++i) {
      dx[i] = ((dy[i] * weight[i] - shift) - (x[i] - mean) * slope) * rstd;
    }
    dx += features;
  }
}

LEPTON_SIMD void add(const float* __restrict x, float* __restrict y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] += x[i];
}

void backward_groups(const float* dy, const float* x, const float* weight, const float* mean, const float* rstd,
                     float* dx, float* dweight, float* dbias, std::size_t rows, std::size_t features) {
  std::vector<float> group(2 * features);
  std::fill_n(dweight, features, 0.0f);
  if (dbias != nullptr) std::fill_n(dbias, features, 0.0f);
  for (std::size_t first = 0; first < rows; first += kGroupRows) {
    const std::size_t offset = first * features;
    std::fill(group.begin(), group.end(), 0.0f);
    backward_rows(dy + offset, x + offset, weight, mean == nullptr ? nullptr : mean + first, rstd + first,
                  dx == nullptr ? nullptr : dx + offset, group.data(), group.data() + features,
                  std::min(kGroupRows, rows - first), features, mean != nullptr);
    add(group.data(), dweight, features);
    if (dbias != nullptr) add(group.data() + features, dbias, features);
  }
}

}  // namespace

void layer_norm(const float* x, const float* weight, const float* bias, float* y, float* mean, float* rstd,
                std::size_t rows, std::size_t features, float epsilon) {
  layer_norm_rows(x, weight, bias, y, mean, rstd, rows, features, epsilon);
}

void layer_norm_backward(const float* dy, const float* x, const float* weight, const float* mean, const float* rstd,
                         float* dx, float* dweight, float* dbias, std::size_t rows, std::size_t features) {
  backward_groups(dy, x, weight, mean, rstd, dx, dweight, dbias, rows, features);
}

void rms_norm(const float* x, const float* weight, float* y, float* rstd, std::size_t rows, std::size_t features,
              float epsilon) {
  rms_norm_rows(x, weight, y, rstd, rows, features, epsilon);
}

void rms_norm_backward(const float* dy, const float* x, const float* weight, const float* rstd, float* dx,
                       float* dweight, std::size_t rows, std::size_t features) {
  backward_groups(dy, x, weight, nullptr, rstd, dx, dweight, nullptr, rows, features);
}

}  // namespace lepton
