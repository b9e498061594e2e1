#include "lepton/bf16_rounding.hpp"

#include "lepton/bf16.hpp"
#include "lepton/simd.hpp"

#include <cstring>

namespace lepton {

LEPTON_SIMD void round_to_bf16(const float* x, std::size_t n, float* out) {
#pragma GCC ivdep  // out is x or does not overlap it
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    // Signed: the magnitude has no sign bit, and SSE2 and AVX2 have no unsigned compare.
    bits = static_cast<std::int32_t>(bits & 0x7fffffffu) > 0x7f800000 ? bits : rounded;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

LEPTON_SIMD void convert_to_bf16(const float* x, std::size_t n, std::uint16_t* out) {
#pragma GCC ivdep
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    out[i] = bf16_bits(bits);
  }
}

}  // namespace lepton
