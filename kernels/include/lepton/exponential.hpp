// exp of differences to a maximum, as plain arithmetic, so that loops of it become vectors; the same bits on every CPU.
#pragma once

#include <cstdint>
#include <cstring>

namespace lepton {

// exp(x) for x <= 0, within 2 units in the last place; 0 below -87.3, where the result would leave the normal numbers,
// so also for -inf. NaN stays NaN, unlike with exp_fp32. exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2)
// / 2, and exp(r) by the polynomial of Cephes' expf.c (S. Moshier).
[[gnu::always_inline]] inline float exp_of_negative(float x) {
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
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;  // 2^n: the shifter's own bits leave at the top
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.3f ? 0.0f : p * power;
}

}  // namespace lepton
