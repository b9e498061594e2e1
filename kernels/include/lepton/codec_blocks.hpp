// How the block codecs of kernels/cpu walk over a payload: the scales of all blocks first, then their codes. A codec is
// a struct `Form` with, for one block,
//   kBlock, Scale (the type as stored), code_nbytes(count), scale(x, count),
//   put_codes(x, count, codes_per_unit, codes), take<add>(scale, codes, count, out).
// The functions here are instantiated inside of functions marked LEPTON_SIMD and take over their instruction set.
#pragma once

#include "lepton/codec.hpp"
#include "lepton/codec_math.hpp"
#include "lepton/philox.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

#define LEPTON_INLINE [[gnu::always_inline]] inline
#define LEPTON_INLINED __attribute__((always_inline))  // of lambdas

namespace lepton {

template <class T>
LEPTON_INLINE T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
LEPTON_INLINE void store(void* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

template <bool add>
LEPTON_INLINE void put(float& out, float value) {
  if constexpr (add) {
    out += value;
  } else {
    out = value;
  }
}

// An fp32 scale as it is, a bfloat16 scale by its upper half.
LEPTON_INLINE void store_scale(std::byte* to, float scale, float) { store(to, scale); }
LEPTON_INLINE void store_scale(std::byte* to, float scale, std::uint16_t) {
  store(to, static_cast<std::uint16_t>(bits_of(scale) >> 16));
}
LEPTON_INLINE float load_scale(const std::byte* from, float) { return load<float>(from); }
LEPTON_INLINE float load_scale(const std::byte* from, std::uint16_t) {
  return float_of(fp32_bits(load<std::uint16_t>(from)));
}

// The largest magnitude bits of a block. Signed, since SSE2 has no unsigned compare.
LEPTON_INLINE unsigned int largest_magnitude(const float* __restrict x, std::size_t count) {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bits_of(x[i]) & kMagnitudeBits);
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<unsigned int>(largest);
}

template <class Form>
constexpr std::size_t form_nbytes(std::size_t n) {
  const std::size_t blocks = (n + Form::kBlock - 1) / Form::kBlock;
  return sizeof(typename Form::Scale) * blocks + Form::code_nbytes(Form::kBlock) * (n / Form::kBlock) +
         Form::code_nbytes(n % Form::kBlock);
}

// Encodes one block; returns the scale that was stored.
template <class Form>
LEPTON_INLINE float encode_block(const float* __restrict x, std::size_t count, std::byte* scale,
                                 std::byte* __restrict codes) {
  const BlockScale s = Form::scale(x, count);
  store_scale(scale, s.scale, typename Form::Scale{});
  if (s.codes_per_unit == 0.0f) {
    std::memset(codes, 0, Form::code_nbytes(count));
  } else {
    Form::put_codes(x, count, s.codes_per_unit, codes);
  }
  return s.scale;
}

// Where block number `index` begins: its values, its scale and its codes.
template <class Form>
struct BlockPlace {
  std::size_t start;
  std::size_t scale;
  std::size_t codes;
};

template <class Form>
constexpr BlockPlace<Form> block_place(std::size_t index, std::size_t n) {
  constexpr std::size_t scale_nbytes = sizeof(typename Form::Scale);
  return {index * Form::kBlock, index * scale_nbytes,
          scale_nbytes * ((n + Form::kBlock - 1) / Form::kBlock) + index * Form::code_nbytes(Form::kBlock)};
}

// Calls work(place, count) for every block; in the calls for full blocks the count is known to the compiler.
template <class Form, class Work>
LEPTON_INLINE void for_each_block(std::size_t n, Work work) {
  const std::size_t num_full = n / Form::kBlock;
  for (std::size_t b = 0; b < num_full; ++b) work(block_place<Form>(b, n), Form::kBlock);
  if (n % Form::kBlock != 0) work(block_place<Form>(num_full, n), n % Form::kBlock);
}

template <class Form>
LEPTON_INLINE void encode_form(const float* __restrict x, std::size_t n, std::byte* __restrict out) {
  for_each_block<Form>(n, [=](BlockPlace<Form> at, std::size_t count) LEPTON_INLINED {
    encode_block<Form>(x + at.start, count, out + at.scale, out + at.codes);
  });
}

template <class Form, bool add>
LEPTON_INLINE void decode_form(const std::byte* __restrict payload, std::size_t n, float* __restrict out) {
  for_each_block<Form>(n, [=](BlockPlace<Form> at, std::size_t count) LEPTON_INLINED {
    const float scale = load_scale(payload + at.scale, typename Form::Scale{});
    Form::template take<add>(scale, payload + at.codes, count, out + at.start);
  });
}

// residual = x - decoded, where that is finite.
LEPTON_INLINE void keep_rest(const float* __restrict x, const float* __restrict decoded, std::size_t count,
                             float* __restrict residual) {
  for (std::size_t i = 0; i < count; ++i) {
    const float rest = x[i] - decoded[i];
    residual[i] = (bits_of(rest) & kMagnitudeBits) < kInfinityBits ? rest : residual[i];
  }
}

template <bool has_gradient>
LEPTON_INLINE void add_residual(const float* __restrict g, const float* __restrict residual, std::size_t count,
                                float* __restrict x) {
  for (std::size_t i = 0; i < count; ++i) x[i] = has_gradient ? g[i] + residual[i] : residual[i];
}

// See encode_with_feedback in lepton/codec.hpp.
template <class Form, bool has_gradient>
LEPTON_INLINE void feedback_form(const float* __restrict g, float* __restrict residual, std::size_t n,
                                 std::byte* __restrict out) {
  for_each_block<Form>(n, [=](BlockPlace<Form> at, std::size_t count) LEPTON_INLINED {
    float x[Form::kBlock];
    float decoded[Form::kBlock];
    add_residual<has_gradient>(has_gradient ? g + at.start : nullptr, residual + at.start, count, x);
    const float scale = encode_block<Form>(x, count, out + at.scale, out + at.codes);
    if (bits_of(scale) == kQuietNanBits) return;
    Form::template take<false>(scale, out + at.codes, count, decoded);
    keep_rest(x, decoded, count, residual + at.start);
  });
}

template <class Form>
LEPTON_INLINE void feedback_form(const float* g, float* residual, std::size_t n, std::byte* out) {
  if (g == nullptr) {
    feedback_form<Form, false>(nullptr, residual, n, out);
  } else {
    feedback_form<Form, true>(g, residual, n, out);
  }
}

// The random words of one block; `first` is the global number of its first value, `words` has room for whole counters.
LEPTON_INLINE void draw_words(const StochasticKey& key, std::uint64_t first, std::size_t count,
                              std::uint32_t* __restrict words) {
  for (std::size_t i = 0; i < (count + 3) / 4; ++i) {
    const std::uint64_t counter = first / 4 + i;
    unsigned int c0 = static_cast<std::uint32_t>(counter);
    unsigned int c1 = static_cast<std::uint32_t>(counter >> 32);
    unsigned int c2 = key.step;
    unsigned int c3 = key.rank << 8 | key.phase;
    philox(c0, c1, c2, c3, static_cast<std::uint32_t>(key.seed), static_cast<std::uint32_t>(key.seed >> 32));
    words[4 * i] = c0;
    words[4 * i + 1] = c1;
    words[4 * i + 2] = c2;
    words[4 * i + 3] = c3;
  }
}

// See encode_stochastic in lepton/codec.hpp; first_element is a multiple of 4.
template <class Form>
LEPTON_INLINE void stochastic_form(const float* __restrict x, std::size_t n, std::byte* __restrict out,
                                   const StochasticKey& key, std::uint64_t first_element) {
  for_each_block<Form>(n, [=](BlockPlace<Form> at, std::size_t count) LEPTON_INLINED {
    std::uint32_t words[Form::kBlock];
    const BlockScale s = Form::scale(x + at.start, count);
    store_scale(out + at.scale, s.scale, typename Form::Scale{});
    if (s.codes_per_unit == 0.0f) {
      std::memset(out + at.codes, 0, Form::code_nbytes(count));
      return;
    }
    draw_words(key, first_element + at.start, count, words);
    Form::put_codes_at_random(x + at.start, words, count, s.codes_per_unit, out + at.codes);
  });
}

}  // namespace lepton
