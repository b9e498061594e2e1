#include "lepton/exact_sum.hpp"

#include "lepton/simd.hpp"

#include <cstdint>
#include <cstring>

namespace lepton {
namespace {

constexpr std::size_t kBlock = 1024;  // values that stay in the first-level cache from one loop to the next

// Adding 1.5 * 2^52 units to a number below 2^51 units rounds it to a multiple of the unit; taking them away again is
// exact.
double rounding_offset(double unit) { return unit * 6755399441055744.0; }

// Magnitudes of floats are ordered as their bits are, with infinity above all numbers and NaN above that.
LEPTON_SIMD std::uint32_t largest_bits(const float* x, std::size_t n) {
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

LEPTON_SIMD void add_rounded(float* __restrict grads, double* __restrict totals, std::size_t n, double offset) {
  for (std::size_t i = 0; i < n; ++i) {
    totals[i] += (static_cast<double>(grads[i]) + offset) - offset;
    grads[i] = 0.0f;
  }
}

LEPTON_SIMD void add_and_clear(double* __restrict sums, double* __restrict totals, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    sums[i] += totals[i];
    totals[i] = 0.0;
  }
}

LEPTON_SIMD void round_once(const double* __restrict sums, float* __restrict out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(sums[i]);
}

LEPTON_SIMD void add_squares(const float* x, std::size_t n, double offset, double low_offset, double* high,
                             double* low) {
  constexpr std::size_t kNumLanes = 8;
  double highs[kNumLanes] = {};
  double lows[kNumLanes] = {};
  std::size_t i = 0;
  for (; i + kNumLanes <= n; i += kNumLanes) {
    for (std::size_t lane = 0; lane < kNumLanes; ++lane) {
      const double square = static_cast<double>(x[i + lane]) * x[i + lane];
      const double rounded = (square + offset) - offset;
      highs[lane] += rounded;
      lows[lane] += ((square - rounded) + low_offset) - low_offset;
    }
  }
  for (std::size_t lane = 0; i < n; ++i, ++lane) {
    const double square = static_cast<double>(x[i]) * x[i];
    const double rounded = (square + offset) - offset;
    highs[lane] += rounded;
    lows[lane] += ((square - rounded) + low_offset) - low_offset;
  }
  for (std::size_t lane = 0; lane < kNumLanes; ++lane) {
    *high += highs[lane];
    *low += lows[lane];
  }
}

template <class Out>
void collect(const std::vector<double*>& totals, std::size_t n, Out* out) {
  double sums[kBlock];
  for (std::size_t start = 0; start < n; start += kBlock) {
    const std::size_t count = n - start < kBlock ? n - start : kBlock;
    std::memset(sums, 0, sizeof sums);
    for (double* part : totals) add_and_clear(sums, part + start, count);
    if constexpr (sizeof(Out) == sizeof(float)) {
      round_once(sums, out + start, count);
    } else {
      std::memcpy(out + start, sums, count * sizeof(double));
    }
  }
}

}  // namespace

float accumulate_rounded(float* grads, double* totals, std::size_t n, double unit) {
  const double offset = rounding_offset(unit);
  std::uint32_t largest = 0;
  for (std::size_t start = 0; start < n; start += kBlock) {
    const std::size_t count = n - start < kBlock ? n - start : kBlock;
    const std::uint32_t bits = largest_bits(grads + start, count);
    largest = bits > largest ? bits : largest;
    add_rounded(grads + start, totals + start, count, offset);
  }
  return as_float(largest);
}

void collect_totals(const std::vector<double*>& totals, std::size_t n, float* out) { collect(totals, n, out); }

void collect_totals(const std::vector<double*>& totals, std::size_t n, double* out) { collect(totals, n, out); }

ExactSquares exact_squares(const float* x, std::size_t n, double unit, double low_unit) {
  ExactSquares sums{0.0, 0.0};
  add_squares(x, n, rounding_offset(unit), rounding_offset(low_unit), &sums.high, &sums.low);
  return sums;
}

float largest_magnitude(const float* x, std::size_t n) { return as_float(largest_bits(x, n)); }

}  // namespace lepton
