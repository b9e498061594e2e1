#include "lepton/cross_entropy.hpp"

#include "lepton/elementary.hpp"
#include "lepton/simd.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

namespace lepton {
namespace {

constexpr std::size_t kNumLanes = 32;  // two AVX-512 or four AVX2 accumulators: enough to hide latencies
constexpr std::size_t kBlock = 1024;   // values whose sum is taken in fp32 before it goes to double

// Joins the upper half of 2 * width lanes to the lower one until lane 0 has all.
template <std::size_t width, class T, class Op>
[[gnu::always_inline]] inline void fold(T* lanes, Op op) {
  for (std::size_t lane = 0; lane < width; ++lane) lanes[lane] = op(lanes[lane], lanes[lane + width]);
  if constexpr (width > 1) fold<width / 2>(lanes, op);
}

// Largest value of a row; values that are NaN are passed over.
LEPTON_SIMD float largest(const float* x, std::size_t n) {
  float lanes[kNumLanes];
  std::fill(lanes, lanes + kNumLanes, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kNumLanes <= n; i += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane)
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  }
  for (std::size_t lane = 0; i < n; ++i, ++lane) lanes[lane] = x[i] > lanes[lane] ? x[i] : lanes[lane];
  fold<kNumLanes / 2>(lanes, [](auto a, auto b) { return a > b ? a : b; });
  return lanes[0];
}

// Sum in a fixed order: value i goes to lane i % kNumLanes, then the lanes are added pairwise.
LEPTON_SIMD float sum_of_block(const float* x, std::size_t n) {
  float lanes[kNumLanes] = {};
  std::size_t i = 0;
  for (; i + kNumLanes <= n; i += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) lanes[lane] += x[i + lane];
  }
  for (std::size_t lane = 0; i < n; ++i, ++lane) lanes[lane] += x[i];
  fold<kNumLanes / 2>(lanes, [](auto a, auto b) { return a + b; });
  return lanes[0];
}

LEPTON_SIMD void exponentials(const float* __restrict x, std::size_t n, float shift, float* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = exp_of_negative(x[i] - shift);
}

// Returns the sum of e^(x - shift) and writes the terms to out, unless it is null.
double sum_of_exponentials(const float* x, std::size_t n, float shift, float* out) {
  double total = 0;
  float block[kBlock];
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t count = std::min(kBlock, n - begin);
    float* terms = out == nullptr ? block : out + begin;
    exponentials(x + begin, count, shift, terms);
    total += sum_of_block(terms, count);
  }
  return total;
}

// Sum of weight * (x - shift), in double; the weights are ones where they are null. Nothing is added for a weight of 0,
// even where x is infinite.
LEPTON_SIMD double weighted_sum(const float* x, const float* weights, std::size_t n, float shift) {
  double lanes[kNumLanes] = {};
  for (std::size_t begin = 0; begin < n; begin += kNumLanes) {
    const std::size_t count = std::min(kNumLanes, n - begin);
    for (std::size_t lane = 0; lane < count; ++lane) {
      const double weight = weights == nullptr ? 1.0f : weights[begin + lane];
      const double term = x[begin + lane] - shift;
      lanes[lane] += weight == 0.0 ? 0.0 : weight * term;
    }
  }
  fold<kNumLanes / 2>(lanes, [](auto a, auto b) { return a + b; });
  return lanes[0];
}

// g = g * scale - smooth * weight.
LEPTON_SIMD void finish_gradient(float* __restrict g, const float* __restrict weights, std::size_t n, float scale,
                                 float smooth) {
  if (smooth == 0.0f) {
    for (std::size_t i = 0; i < n; ++i) g[i] *= scale;
  } else if (weights == nullptr) {
    for (std::size_t i = 0; i < n; ++i) g[i] = g[i] * scale - smooth;
  } else {
    for (std::size_t i = 0; i < n; ++i) g[i] = g[i] * scale - smooth * weights[i];
  }
}

// Whether one of the values equals `value`.
LEPTON_SIMD bool contains(const float* x, std::size_t n, float value) {
  int found = 0;
  for (std::size_t i = 0; i < n; ++i) found |= x[i] == value;
  return found != 0;
}

}  // namespace

CrossEntropySums softmax_cross_entropy(const float* logits, const std::int64_t* labels, std::size_t num_rows,
                                       std::size_t num_classes, const float* class_weights, double label_smoothing,
                                       double factor, float* dlogits) {
  const double smooth = label_smoothing / static_cast<double>(num_classes);
  double all_weights = static_cast<double>(num_classes);
  if (class_weights != nullptr) {
    all_weights = 0;
    for (std::size_t c = 0; c < num_classes; ++c) all_weights += class_weights[c];
  }
  CrossEntropySums sums;
  for (std::size_t row = 0; row < num_rows; ++row) {
    const float* x = logits + row * num_classes;
    float* g = dlogits == nullptr ? nullptr : dlogits + row * num_classes;
    if (labels[row] == kIgnoredLabel) {
      if (g != nullptr) std::fill(g, g + num_classes, 0.0f);
      continue;
    }
    assert(labels[row] >= 0 && static_cast<std::size_t>(labels[row]) < num_classes);
    const auto label = static_cast<std::size_t>(labels[row]);
    const float highest = largest(x, num_classes);
    const double total = sum_of_exponentials(x, num_classes, highest, g);
    // The loss is the cross entropy with the target t[c] = of_label * [c == label] + smooth * weight[c].
    const double weight = class_weights == nullptr ? 1.0 : class_weights[label];
    const double of_label = (1.0 - label_smoothing) * weight;
    const double of_all = of_label + smooth * all_weights;
    sums.loss += of_all * std::log(total);
    if (of_label != 0) sums.loss -= of_label * (static_cast<double>(x[label]) - static_cast<double>(highest));
    if (smooth != 0) sums.loss -= smooth * weighted_sum(x, class_weights, num_classes, highest);
    sums.weight += weight;
    if (weight != 0) {
      sums.num_counted += 1;
      sums.num_correct += x[label] == highest && total == total && !contains(x, label, highest);
    }
    if (g != nullptr) {
      finish_gradient(g, class_weights, num_classes, static_cast<float>(factor * of_all / total),
                      static_cast<float>(factor * smooth));
      g[label] -= static_cast<float>(factor * of_label);
    }
  }
  return sums;
}

}  // namespace lepton
