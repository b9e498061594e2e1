// The block codecs for one warp of CUDA: 32 lanes encode or decode one block and agree on its scale. Only for sources
// compiled as CUDA.
#pragma once

#include "lepton/codec_math.hpp"

namespace lepton {

constexpr int kWarpLanes = 32;
constexpr unsigned int kAllLanes = 0xffffffffu;

// Payloads may start at any address.
template <class T>
__device__ inline void store_bytes(unsigned char* to, T value) {
  for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) to[i] = static_cast<unsigned char>(value >> (8 * i));
}

__device__ inline unsigned int load_bytes(const unsigned char* from, int count) {
  unsigned int value = 0;
  for (int i = 0; i < count; ++i) value |= static_cast<unsigned int>(from[i]) << (8 * i);
  return value;
}

__device__ inline unsigned int largest_magnitude(const float* x, int count, int lane) {
  unsigned int largest = 0;
  for (int i = lane; i < count; i += kWarpLanes) {
    const unsigned int magnitude = bits_of(x[i]) & kMagnitudeBits;
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    const unsigned int other = __shfl_xor_sync(kAllLanes, largest, distance);
    largest = other > largest ? other : largest;
  }
  return largest;
}

// The lanes are those of kSign1Lanes; an addition gives the same in either order of its operands.
__device__ inline float sum_of_magnitudes(const float* x, int count, int lane) {
  float sum = 0.0f;
  for (int i = lane; i < count; i += kWarpLanes) sum = sum + float_of(bits_of(x[i]) & kMagnitudeBits);
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    sum = sum + __shfl_xor_sync(kAllLanes, sum, distance);
  }
  return sum;
}

struct Int8Warp {
  static constexpr int kBlock = kInt8Block;
  static constexpr int kScaleNbytes = 4;
  __device__ static int code_nbytes(int count) { return count; }
  __device__ static BlockScale scale(const float* x, int count, int lane) {
    return int8_scale(largest_magnitude(x, count, lane));
  }
  __device__ static void put_codes(const float* x, int count, int lane, float codes_per_unit, unsigned char* codes) {
    for (int i = lane; i < count; i += kWarpLanes) {
      codes[i] = static_cast<unsigned char>(nearest_code(x[i], codes_per_unit));
    }
  }
  __device__ static float value(const unsigned char* codes, int i, float scale) {
    return int8_value(static_cast<signed char>(codes[i]), scale);
  }
};

struct Int4Warp {
  static constexpr int kBlock = kInt4Block;
  static constexpr int kScaleNbytes = 2;
  __device__ static int code_nbytes(int count) { return count < kInt4Half ? count : kInt4Half; }
  __device__ static BlockScale scale(const float* x, int count, int lane) {
    return int4_scale(largest_magnitude(x, count, lane));
  }
  __device__ static void put_codes(const float* x, int count, int lane, float codes_per_unit, unsigned char* codes) {
    if (lane >= count) return;
    const unsigned int low = nearest_code(x[lane], codes_per_unit) & 15u;
    const unsigned int high = lane + kInt4Half < count ? nearest_code(x[lane + kInt4Half], codes_per_unit) : 0u;
    codes[lane] = static_cast<unsigned char>(low | high << 4);
  }
  __device__ static float value(const unsigned char* codes, int i, float scale) {
    return i < kInt4Half ? int4_low_value(codes[i], scale) : int4_high_value(codes[i - kInt4Half], scale);
  }
};

struct Sign1Warp {
  static constexpr int kBlock = kSign1Block;
  static constexpr int kScaleNbytes = 4;
  __device__ static int code_nbytes(int count) { return (count + 7) / 8; }
  __device__ static BlockScale scale(const float* x, int count, int lane) {
    return sign1_scale(sum_of_magnitudes(x, count, lane), count);
  }
  __device__ static void put_codes(const float* x, int count, int lane, float, unsigned char* codes) {
    for (int first = 0; first < count; first += kWarpLanes) {
      const bool negative = first + lane < count && (bits_of(x[first + lane]) & kSignBit) != 0;
      const unsigned int signs = __ballot_sync(kAllLanes, negative);
      const int byte = first / 8 + lane;
      if (lane < 4 && byte < code_nbytes(count)) codes[byte] = static_cast<unsigned char>(signs >> (8 * lane));
    }
  }
  __device__ static float value(const unsigned char* codes, int i, float scale) {
    return sign1_value((codes[i / 8] >> (i % 8) & 1) != 0, scale);
  }
};

}  // namespace lepton
