// Elementary functions of fp32 as plain arithmetic, so that loops over them become vectors and give the same bits on
// every CPU. Those for activations are bounded and do not pass NaN on; activations multiply them by x, which does.
#pragma once

#include <cstdint>
#include <cstring>

namespace lepton {

inline std::uint32_t to_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The nearer of x and the bounds +-87.3, between which exp is a normal number. Compared as integers: from a comparison
// of floats GCC makes a path of its own for each bound, which doubles the time of the loops.
inline float clamp_to_exp(float x) {
  const std::uint32_t bits = to_bits(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  constexpr std::uint32_t bound = 0x42ae999au;  // 87.3
  return from_bits((magnitude < bound ? magnitude : bound) | (bits & 0x80000000u));
}

// exp(x) within 2 units in the last place for |x| <= 87.3; NaN for NaN. Cephes expf.c (S. Moshier): x = n ln 2 + r, and
// a polynomial for exp(r).
[[gnu::always_inline]] inline float exp_in_range(float x) {
  constexpr float kShifter = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504088896341f + kShifter;
  const float n = shifted - kShifter;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // the first product is exact
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  return p * from_bits((to_bits(shifted) + 127u) << 23);  // 2^n: the shifter's own bits leave at the top
}

// exp(x) for any x: larger arguments than 87.3, and NaN, count as +-87.3.
inline float exp_fp32(float x) { return exp_in_range(clamp_to_exp(x)); }

// exp(x) for x <= 0; 0 where the result would leave the normal numbers, so also for -inf; NaN for NaN.
[[gnu::always_inline]] inline float exp_of_negative(float x) { return x < -87.3f ? 0.0f : exp_in_range(x); }

// The logistic function at one point.
struct SigmoidFp32 {
  float value;  // 1 / (1 + exp(-x))
  float rest;   // 1 - value, without its cancellation
};

inline SigmoidFp32 sigmoid_fp32(float x) {
  const float e = exp_fp32(-x);
  const float value = 1.0f / (1.0f + e);
  return {value, e * value};
}

// The normal distribution at one point.
struct NormalFp32 {
  float below;    // probability of a smaller value: (1 + erf(x / sqrt 2)) / 2
  float density;  // exp(-x^2 / 2) / sqrt(2 pi)
};

// The upper tail at a = |x| is exp(-a^2 / 2) q(u) / (1 + a / 3.5) with u = (a - 3.5) / (a + 3.5), the form of Shepherd
// and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", Math. Comp. 36, 1981. q is our own minimax
// fit, relative error 6e-9 for a <= 14; further out the tail is below 1e-38.
inline NormalFp32 normal_fp32(float x) {
  const float a = from_bits(to_bits(x) & 0x7fffffffu);
  const float r = 1.0f / (a + 3.5f);
  const float u = 1.0f - 7.0f * r;
  float q = 3.25336171e-5f;
  q = q * u + 1.22221349e-4f;
  q = q * u + -1.41263226e-4f;
  q = q * u + -9.08328189e-4f;
  q = q * u + 1.85485370e-3f;
  q = q * u + 4.97348234e-3f;
  q = q * u + -3.31579460e-2f;
  q = q * u + 9.01214257e-2f;
  q = q * u + -1.61589073e-1f;
  q = q * u + 2.12690307e-1f;
  const float bell = exp_fp32(-0.5f * (a * a));
  const float tail = bell * (q * (3.5f * r));
  return {x < 0.0f ? tail : 1.0f - tail, bell * 0.39894228040143268f};
}

}  // namespace lepton
