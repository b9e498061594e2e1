// int8: blocks of 256 values, one fp32 scale each.
#include "lepton/codec_blocks.hpp"
#include "lepton/codec_table.hpp"
#include "lepton/simd.hpp"

namespace lepton {
namespace {

struct Int8 {
  static constexpr std::size_t kBlock = kInt8Block;
  using Scale = float;
  static constexpr std::size_t code_nbytes(std::size_t count) { return count; }

  LEPTON_INLINE static BlockScale scale(const float* __restrict x, std::size_t count) {
    return int8_scale(largest_magnitude(x, count));
  }

  LEPTON_INLINE static void put_codes(const float* __restrict x, std::size_t count, float codes_per_unit,
                                      std::byte* __restrict codes) {
    for (std::size_t i = 0; i < count; ++i) {
      store(codes + i, static_cast<std::uint8_t>(nearest_code(x[i], codes_per_unit)));
    }
  }

  LEPTON_INLINE static void put_codes_at_random(const float* __restrict x, const std::uint32_t* __restrict words,
                                                std::size_t count, float codes_per_unit, std::byte* __restrict codes) {
    for (std::size_t i = 0; i < count; ++i) {
      store(codes + i, static_cast<std::uint8_t>(stochastic_code(x[i], codes_per_unit, kInt8MaxCode, words[i])));
    }
  }

  template <bool add>
  LEPTON_INLINE static void take(float scale, const std::byte* __restrict codes, std::size_t count,
                                 float* __restrict out) {
    for (std::size_t i = 0; i < count; ++i) put<add>(out[i], int8_value(load<signed char>(codes + i), scale));
  }
};

LEPTON_SIMD void encode(const float* x, std::size_t n, std::byte* out) { encode_form<Int8>(x, n, out); }

LEPTON_SIMD void decode(const std::byte* payload, std::size_t n, float* out) {
  decode_form<Int8, false>(payload, n, out);
}

LEPTON_SIMD void decode_add(const std::byte* payload, std::size_t n, float* out) {
  decode_form<Int8, true>(payload, n, out);
}

LEPTON_SIMD void encode_with_feedback(const float* g, float* residual, std::size_t n, std::byte* out) {
  feedback_form<Int8>(g, residual, n, out);
}

LEPTON_SIMD void encode_stochastic(const float* x, std::size_t n, std::byte* out, const StochasticKey& key,
                                   std::uint64_t first_element) {
  stochastic_form<Int8>(x, n, out, key, first_element);
}

}  // namespace

const CodecTable kInt8Codec{kInt8Block, form_nbytes<Int8>,    encode,           decode,
                            decode_add, encode_with_feedback, encode_stochastic};

}  // namespace lepton
