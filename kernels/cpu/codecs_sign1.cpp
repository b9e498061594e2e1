// sign1: blocks of 1024 values, one fp32 scale each, the mean of the magnitudes; one bit a value.
#include "lepton/codec_blocks.hpp"
#include "lepton/codec_table.hpp"
#include "lepton/simd.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace lepton {
namespace {

// The sign bits of 32 values, the first in the lowest bit. The compiler finds no good form for the other direction of
// sign1_value by itself; the instruction for it is in SSE2, which every x86-64 CPU has.
LEPTON_INLINE std::uint32_t signs_of_32(const float* x) {
#if defined(__SSE2__)
  std::uint32_t signs = 0;
  for (int half = 0; half < 2; ++half) {
    const auto* from = reinterpret_cast<const __m128i*>(x + 16 * half);
    const __m128i low = _mm_packs_epi32(_mm_loadu_si128(from), _mm_loadu_si128(from + 1));
    const __m128i high = _mm_packs_epi32(_mm_loadu_si128(from + 2), _mm_loadu_si128(from + 3));
    signs |= static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high))) << 16 * half;
  }
  return signs;
#else
  std::uint32_t signs = 0;
  for (int i = 0; i < 32; ++i) signs |= (bits_of(x[i]) >> 31) << i;
  return signs;
#endif
}

struct Sign1 {
  static constexpr std::size_t kBlock = kSign1Block;
  using Scale = float;
  static constexpr std::size_t kLanes = kSign1Lanes;
  static constexpr std::size_t code_nbytes(std::size_t count) { return (count + 7) / 8; }

  LEPTON_INLINE static BlockScale scale(const float* __restrict x, std::size_t count) {
    float lanes[kLanes] = {};
    const std::size_t num_whole = count - count % kLanes;
    for (std::size_t i = 0; i < num_whole; i += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += float_of(bits_of(x[i + lane]) & kMagnitudeBits);
    }
    for (std::size_t i = num_whole; i < count; ++i) lanes[i - num_whole] += float_of(bits_of(x[i]) & kMagnitudeBits);
    for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
      for (std::size_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    }
    return sign1_scale(lanes[0], static_cast<int>(count));
  }

  LEPTON_INLINE static void put_codes(const float* __restrict x, std::size_t count, float /*codes_per_unit*/,
                                      std::byte* __restrict codes) {
    const std::size_t num_whole = count / 32;
    for (std::size_t word = 0; word < num_whole; ++word) store(codes + 4 * word, signs_of_32(x + 32 * word));
    for (std::size_t i = 32 * num_whole; i < count; i += 8) {
      unsigned int byte = 0;
      for (std::size_t bit = 0; bit < 8 && i + bit < count; ++bit) byte |= (bits_of(x[i + bit]) >> 31) << bit;
      store(codes + i / 8, static_cast<std::uint8_t>(byte));
    }
  }

  template <bool add>
  LEPTON_INLINE static void take(float scale, const std::byte* __restrict codes, std::size_t count,
                                 float* __restrict out) {
    const std::size_t num_whole = count / 32;
    for (std::size_t word = 0; word < num_whole; ++word) {
      const auto signs = load<std::uint32_t>(codes + 4 * word);
      for (std::size_t i = 0; i < 32; ++i) put<add>(out[32 * word + i], sign1_value((signs & 1u << i) != 0, scale));
    }
    for (std::size_t i = 32 * num_whole; i < count; ++i) {
      put<add>(out[i], sign1_value((load<std::uint8_t>(codes + i / 8) & 1u << i % 8) != 0, scale));
    }
  }
};

LEPTON_SIMD void encode(const float* x, std::size_t n, std::byte* out) { encode_form<Sign1>(x, n, out); }

LEPTON_SIMD void decode(const std::byte* payload, std::size_t n, float* out) {
  decode_form<Sign1, false>(payload, n, out);
}

LEPTON_SIMD void decode_add(const std::byte* payload, std::size_t n, float* out) {
  decode_form<Sign1, true>(payload, n, out);
}

LEPTON_SIMD void encode_with_feedback(const float* g, float* residual, std::size_t n, std::byte* out) {
  feedback_form<Sign1>(g, residual, n, out);
}

}  // namespace

const CodecTable kSign1Codec{kSign1Block, form_nbytes<Sign1>,   encode, decode,
                             decode_add,  encode_with_feedback, nullptr};

}  // namespace lepton
