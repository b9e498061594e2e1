// What writing and reading of top-k payloads share; see docs/wire_format.md.
#pragma once

#include "lepton/codec_blocks.hpp"
#include "lepton/topk.hpp"

#include <algorithm>

namespace lepton {

enum class TopkLayout : std::uint32_t { sparse = 0, dense = 1 };

constexpr std::size_t kTopkLayoutNbytes = 4;
constexpr std::size_t kTopkBlockHeader = 8;  // of a sparse payload: count and scale
constexpr std::size_t kTopkPairNbytes = 4;   // index and value
constexpr unsigned int kTopkExponent = 14;
constexpr unsigned int kTopkSmallestSentBits = (1 + kTopkExponent) << 23;  // below it the scale would be subnormal

// The power of two that brings the largest magnitude into [2^14, 2^15), and its inverse.
inline BlockScale topk_scale(unsigned int largest) {
  if (largest >= kInfinityBits) return no_codes(false);
  if (largest < kTopkSmallestSentBits) return no_codes(true);
  const unsigned int exponent = largest >> 23;
  return {float_of((exponent - kTopkExponent) << 23), float_of((254u + kTopkExponent - exponent) << 23)};
}

inline float topk_value(std::uint16_t code, float scale) { return float_of(fp16_to_fp32_bits(code)) * scale; }

inline std::size_t topk_block_length(std::size_t block, std::size_t n) {
  return std::min(kTopkBlock, n - block * kTopkBlock);
}

inline std::size_t topk_num_blocks(std::size_t n) { return (n + kTopkBlock - 1) / kTopkBlock; }

inline std::size_t topk_dense_nbytes(std::size_t n) { return kTopkLayoutNbytes + 4 * topk_num_blocks(n) + 2 * n; }

}  // namespace lepton
