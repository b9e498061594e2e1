// int4: blocks of 64 values, one bfloat16 scale each; byte j of a block holds values j and j + 32.
#include "lepton/codec_blocks.hpp"
#include "lepton/codec_table.hpp"
#include "lepton/simd.hpp"

namespace lepton {
namespace {

struct Int4 {
  static constexpr std::size_t kBlock = kInt4Block;
  using Scale = std::uint16_t;
  static constexpr std::size_t kHalf = kInt4Half;
  static constexpr std::size_t code_nbytes(std::size_t count) { return count < kHalf ? count : kHalf; }

  LEPTON_INLINE static BlockScale scale(const float* __restrict x, std::size_t count) {
    return int4_scale(largest_magnitude(x, count));
  }

  LEPTON_INLINE static std::uint8_t joined(unsigned int low, unsigned int high) {
    return static_cast<std::uint8_t>((low & 15u) | high << 4);
  }

  LEPTON_INLINE static void put_codes(const float* __restrict x, std::size_t count, float codes_per_unit,
                                      std::byte* __restrict codes) {
    const std::size_t num_high = count > kHalf ? count - kHalf : 0;
    for (std::size_t j = 0; j < num_high; ++j) {
      store(codes + j, joined(nearest_code(x[j], codes_per_unit), nearest_code(x[j + kHalf], codes_per_unit)));
    }
    for (std::size_t j = num_high; j < code_nbytes(count); ++j) {
      store(codes + j, joined(nearest_code(x[j], codes_per_unit), 0));
    }
  }

  LEPTON_INLINE static void put_codes_at_random(const float* __restrict x, const std::uint32_t* __restrict words,
                                                std::size_t count, float codes_per_unit, std::byte* __restrict codes) {
    const std::size_t num_high = count > kHalf ? count - kHalf : 0;
    for (std::size_t j = 0; j < num_high; ++j) {
      const unsigned int low = stochastic_code(x[j], codes_per_unit, kInt4MaxCode, words[j]);
      const unsigned int high = stochastic_code(x[j + kHalf], codes_per_unit, kInt4MaxCode, words[j + kHalf]);
      store(codes + j, joined(low, high));
    }
    for (std::size_t j = num_high; j < code_nbytes(count); ++j) {
      store(codes + j, joined(stochastic_code(x[j], codes_per_unit, kInt4MaxCode, words[j]), 0));
    }
  }

  template <bool add>
  LEPTON_INLINE static void take(float scale, const std::byte* __restrict codes, std::size_t count,
                                 float* __restrict out) {
    const std::size_t num_high = count > kHalf ? count - kHalf : 0;
    for (std::size_t j = 0; j < code_nbytes(count); ++j) {
      put<add>(out[j], int4_low_value(load<unsigned char>(codes + j), scale));
    }
    for (std::size_t j = 0; j < num_high; ++j) {
      put<add>(out[j + kHalf], int4_high_value(load<unsigned char>(codes + j), scale));
    }
  }
};

LEPTON_SIMD void encode(const float* x, std::size_t n, std::byte* out) { encode_form<Int4>(x, n, out); }

LEPTON_SIMD void decode(const std::byte* payload, std::size_t n, float* out) {
  decode_form<Int4, false>(payload, n, out);
}

LEPTON_SIMD void decode_add(const std::byte* payload, std::size_t n, float* out) {
  decode_form<Int4, true>(payload, n, out);
}

LEPTON_SIMD void encode_with_feedback(const float* g, float* residual, std::size_t n, std::byte* out) {
  feedback_form<Int4>(g, residual, n, out);
}

LEPTON_SIMD void encode_stochastic(const float* x, std::size_t n, std::byte* out, const StochasticKey& key,
                                   std::uint64_t first_element) {
  stochastic_form<Int4>(x, n, out, key, first_element);
}

}  // namespace

const CodecTable kInt4Codec{kInt4Block, form_nbytes<Int4>,    encode,           decode,
                            decode_add, encode_with_feedback, encode_stochastic};

}  // namespace lepton
