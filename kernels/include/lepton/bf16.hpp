// bfloat16: the upper half of an IEEE 754 binary32. Shared by C++ and CUDA.
#pragma once

#include "lepton/device.hpp"

namespace lepton {

// Rounds the fp32 with these bits to nearest even. Finite values above the largest bfloat16 round to infinity, as in
// IEEE 754; a NaN keeps its sign and upper payload and becomes quiet, so that it cannot round to infinity.
LEPTON_HOST_DEVICE inline unsigned short bf16_bits(unsigned int fp32_bits) {
  const unsigned int rounded = (fp32_bits + 0x7fffu + ((fp32_bits >> 16) & 1u)) >> 16;
  const unsigned int quiet_nan = (fp32_bits >> 16) | 0x40u;
  return static_cast<unsigned short>((fp32_bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

LEPTON_HOST_DEVICE inline unsigned int fp32_bits(unsigned short bf16_bits) {
  return static_cast<unsigned int>(bf16_bits) << 16;
}

}  // namespace lepton
