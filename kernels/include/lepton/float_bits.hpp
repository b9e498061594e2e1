// The bits of an fp32 and back. Shared by C++ and CUDA.
#pragma once

#include "lepton/device.hpp"

namespace lepton {

LEPTON_HOST_DEVICE inline unsigned int bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  unsigned int bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

LEPTON_HOST_DEVICE inline float float_of(unsigned int bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

constexpr unsigned int kMagnitudeBits = 0x7fffffffu;
constexpr unsigned int kSignBit = 0x80000000u;
constexpr unsigned int kInfinityBits = 0x7f800000u;
constexpr unsigned int kQuietNanBits = 0x7fc00000u;
constexpr float kSmallestNormal = 0x1p-126f;

}  // namespace lepton
