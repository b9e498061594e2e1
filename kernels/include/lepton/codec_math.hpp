// Arithmetic of the block codecs for one scale and for one code, shared by C++ and CUDA. Every operation is one IEEE
// fp32 operation in the order written (compile without FMA contraction), so C++, CUDA and NumPy agree bit for bit.
// docs/wire_format.md specifies the bytes.
#pragma once

#include "lepton/bf16.hpp"
#include "lepton/device.hpp"
#include "lepton/float_bits.hpp"
#include "lepton/fp16.hpp"

namespace lepton {

constexpr int kInt8Block = 256;
constexpr int kInt4Block = 64;
constexpr int kInt4Half = kInt4Block / 2;  // byte j of a block holds values j and j + 32
constexpr int kSign1Block = 1024;
constexpr int kSign1Lanes = 32;  // lane l sums |x[l]|, |x[l + 32]|, ...; then the lanes are added in a tree
constexpr float kInt8MaxCode = 127.0f;
constexpr float kInt4MaxCode = 7.0f;

// Added to a float below 2^22 in magnitude, 1.5 * 2^23 rounds it to nearest even and leaves the integer, in two's
// complement, in the low bits: rint and conversion in one addition that every instruction set has.
constexpr float kRoundingMagic = 12582912.0f;

// The scale of a block and the factor that turns its values into codes. Where nothing can be sent (all zeros, a scale
// that would be subnormal, a NaN or an infinity) the factor is 0, and every code is 0; the scale is then 0 or NaN.
struct BlockScale {
  float scale;
  float codes_per_unit;
};

LEPTON_HOST_DEVICE inline BlockScale no_codes(bool finite) { return {finite ? 0.0f : float_of(kQuietNanBits), 0.0f}; }

// largest: the largest magnitude bits of the block; magnitudes order like their bits, NaN and Inf last.
LEPTON_HOST_DEVICE inline BlockScale int8_scale(unsigned int largest) {
  if (largest >= kInfinityBits) return no_codes(false);
  const float amax = float_of(largest);
  const float scale = amax / kInt8MaxCode;
  if (scale < kSmallestNormal) return no_codes(true);  // 127 / amax could overflow
  return {scale, kInt8MaxCode / amax};
}

// The scale is a bfloat16 rounded up, so that no code exceeds 7.
LEPTON_HOST_DEVICE inline BlockScale int4_scale(unsigned int largest) {
  if (largest >= kInfinityBits) return no_codes(false);
  const float unrounded = float_of(largest) / kInt4MaxCode;
  if (unrounded < kSmallestNormal) return no_codes(true);
  const float scale = float_of((bits_of(unrounded) + 0xffffu) & 0xffff0000u);
  return {scale, 1.0f / scale};
}

// total: the sum of magnitudes; it is not finite if a value is not, and where the sum overflows. The factor only says
// whether signs are sent.
LEPTON_HOST_DEVICE inline BlockScale sign1_scale(float total, int count) {
  if (bits_of(total) >= kInfinityBits) return no_codes(false);
  const float scale = total / static_cast<float>(count);
  if (scale < kSmallestNormal) return no_codes(true);
  return {scale, 1.0f};
}

// x * codes_per_unit rounded to nearest even; the low bits of the result are the code.
LEPTON_HOST_DEVICE inline unsigned int nearest_code(float x, float codes_per_unit) {
  return bits_of(x * codes_per_unit + kRoundingMagic);
}

// x * codes_per_unit rounded down, or up where the upper 24 bits of the random word lie below its fraction, in units of
// 2^-24: the expected code is x * codes_per_unit to 2^-24.
LEPTON_HOST_DEVICE inline unsigned int stochastic_code(float x, float codes_per_unit, float max_code,
                                                       unsigned int word) {
  float y = x * codes_per_unit;
  y = y > max_code ? max_code : y;
  y = y < -max_code ? -max_code : y;
  const float nearest = (y + kRoundingMagic) - kRoundingMagic;
  const float floor = nearest > y ? nearest - 1.0f : nearest;
  const float draw = static_cast<float>(static_cast<int>(word >> 8)) * 0x1p-24f;
  return bits_of((draw < y - floor ? floor + 1.0f : floor) + kRoundingMagic);
}

LEPTON_HOST_DEVICE inline float int8_value(signed char code, float scale) { return static_cast<float>(code) * scale; }

// byte holds value j in its low half and value j + 32 in its high half, each in two's complement.
LEPTON_HOST_DEVICE inline float int4_low_value(unsigned char byte, float scale) {
  return static_cast<float>(static_cast<int>(static_cast<unsigned int>(byte) << 28) >> 28) * scale;
}

LEPTON_HOST_DEVICE inline float int4_high_value(unsigned char byte, float scale) {
  return static_cast<float>(static_cast<int>(static_cast<unsigned int>(byte) << 24) >> 28) * scale;
}

// Minus the scale where the sign bit is set.
LEPTON_HOST_DEVICE inline float sign1_value(bool negative, float scale) {
  return float_of(bits_of(scale) ^ (negative ? kSignBit : 0u));
}

}  // namespace lepton
