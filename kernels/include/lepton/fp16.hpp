// IEEE 754 binary16 by integer arithmetic and one exact fp32 operation, so that every CPU and GPU gives the same bits.
// Shared by C++ and CUDA. After F. Giesen, "float->half variants", 2012 (public domain).
#pragma once

#include "lepton/device.hpp"
#include "lepton/float_bits.hpp"

namespace lepton {

// Rounds the fp32 with these bits to nearest even. From 65520 on it rounds to infinity, as in IEEE 754; a NaN keeps
// its sign and upper payload and becomes quiet.
LEPTON_HOST_DEVICE inline unsigned short fp16_bits(unsigned int fp32_bits) {
  const unsigned int sign = (fp32_bits >> 16) & 0x8000u;
  const unsigned int magnitude = fp32_bits & 0x7fffffffu;
  // Below 2^-14: adding 0.5 rounds to multiples of 2^-24 and leaves their number in the low bits.
  const unsigned int subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const unsigned int normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const unsigned int quiet_nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  unsigned int half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? quiet_nan : half;
  return static_cast<unsigned short>(sign | half);
}

// The fp32 bits of a binary16; exact.
LEPTON_HOST_DEVICE inline unsigned int fp16_to_fp32_bits(unsigned short fp16_bits) {
  const unsigned int sign = (static_cast<unsigned int>(fp16_bits) & 0x8000u) << 16;
  const unsigned int shifted = (static_cast<unsigned int>(fp16_bits) & 0x7fffu) << 13;
  const unsigned int normal = shifted + 0x38000000u;
  const unsigned int subnormal = bits_of(float_of(shifted + 0x38800000u) - 0x1p-14f);
  unsigned int magnitude = shifted < 0x00800000u ? subnormal : normal;
  magnitude = shifted >= 0x0f800000u ? shifted + 0x70000000u : magnitude;
  return sign | magnitude;
}

}  // namespace lepton
