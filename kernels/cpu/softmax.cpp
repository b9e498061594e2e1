#include "lepton/softmax.hpp"

#include "lepton/elementary.hpp"
#include "lepton/simd.hpp"

#include <algorithm>
#include <limits>
#include <vector>

namespace lepton {
namespace {

constexpr std::size_t kNumLanes = 16;
constexpr float kNever = -std::numeric_limits<float>::infinity();

[[gnu::always_inline]] inline float add_lanes(float* lanes) {
  for (std::size_t width = kNumLanes / 2; width > 0; width /= 2) {
    for (std::size_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// `row` is a copy of the scores times scale, filled up with -inf to a multiple of the lanes. Returns 1 / sum.
LEPTON_SIMD float exponentials(float* __restrict row, std::size_t padded) {
  float largest_lanes[kNumLanes];
  for (std::size_t lane = 0; lane < kNumLanes; ++lane) largest_lanes[lane] = kNever;
  for (std::size_t k = 0; k < padded; k += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) {
      largest_lanes[lane] = row[k + lane] > largest_lanes[lane] ? row[k + lane] : largest_lanes[lane];
    }
  }
  const float largest = *std::max_element(largest_lanes, largest_lanes + kNumLanes);
  // A row without an allowed key (or of nothing but -inf and NaN): subtract 0, so that -inf gives 0 and NaN stays.
  const float shift = largest == kNever ? 0.0f : largest;
  for (std::size_t k = 0; k < padded; ++k) row[k] = exp_of_negative(row[k] - shift);
  float lanes[kNumLanes] = {};
  for (std::size_t k = 0; k < padded; k += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) lanes[lane] += row[k + lane];
  }
  const float sum = add_lanes(lanes);
  return sum == 0.0f ? 0.0f : 1.0f / sum;
}

LEPTON_SIMD void scaled(const float* __restrict from, float* __restrict to, std::size_t n, float factor) {
  for (std::size_t k = 0; k < n; ++k) to[k] = from[k] * factor;
}

LEPTON_SIMD void scaled_and_masked(const float* __restrict from, const bool* __restrict mask, float* __restrict to,
                                   std::size_t n, float factor) {
  for (std::size_t k = 0; k < n; ++k) to[k] = mask[k] ? from[k] * factor : kNever;
}

LEPTON_SIMD void backward_row(float* __restrict dp, const float* __restrict p, std::size_t n, float scale) {
  float lanes[kNumLanes] = {};
  std::size_t k = 0;
  for (; k + kNumLanes <= n; k += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) lanes[lane] += dp[k + lane] * p[k + lane];
  }
  for (std::size_t lane = 0; k + lane < n; ++lane) lanes[lane] += dp[k + lane] * p[k + lane];
  const float sum = add_lanes(lanes);
  for (k = 0; k < n; ++k) dp[k] = scale * (p[k] * (dp[k] - sum));
}

// Number of keys that query i sees.
std::size_t seen(const ScoreShape& shape, std::size_t query) {
  if (shape.first_query == not_causal) return shape.keys;
  return std::min(shape.keys, static_cast<std::size_t>(shape.first_query) + query + 1);
}

}  // namespace

void softmax(float* scores, const bool* key_mask, const ScoreShape& shape, float scale) {
  std::vector<float> scratch((shape.keys + kNumLanes - 1) / kNumLanes * kNumLanes);
  float* const row = scratch.data();
  for (std::size_t b = 0; b < shape.batch; ++b) {
    const bool* const mask = key_mask == nullptr ? nullptr : key_mask + b * shape.keys;
    for (std::size_t i = 0; i < shape.heads * shape.queries; ++i, scores += shape.keys) {
      const std::size_t n = seen(shape, i % shape.queries);
      const std::size_t padded = (n + kNumLanes - 1) / kNumLanes * kNumLanes;
      if (mask == nullptr) {
        scaled(scores, row, n, scale);
      } else {
        scaled_and_masked(scores, mask, row, n, scale);
      }
      std::fill(row + n, row + padded, kNever);
      const float factor = exponentials(row, padded);
      scaled(row, scores, n, factor);
      std::fill(scores + n, scores + shape.keys, 0.0f);
    }
  }
}

void softmax_backward(float* dp, const float* p, const ScoreShape& shape, float scale) {
  const std::size_t rows = shape.batch * shape.heads * shape.queries;
  for (std::size_t i = 0; i < rows; ++i, dp += shape.keys, p += shape.keys) {
    const std::size_t n = seen(shape, i % shape.queries);
    backward_row(dp, p, n, scale);
    std::fill(dp + n, dp + shape.keys, 0.0f);
  }
}

}  // namespace lepton
