#include "lepton/codec.hpp"

#include "lepton/bf16.hpp"
#include "lepton/simd.hpp"

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are little-endian; this CPU is not");
static_assert(std::numeric_limits<float>::is_iec559, "payloads hold IEEE 754 numbers");

namespace lepton {
namespace {

constexpr std::size_t kInt8Block = 256;
constexpr float kMaxCode = 127.0f;
// Added to a float below 2^22 in magnitude, 1.5 * 2^23 rounds it to nearest even and leaves the integer, in two's
// complement, in the low bits: rint and conversion in one addition that every instruction set has.
constexpr float kRoundingMagic = 12582912.0f;

// Helpers take over the instruction set of the clone that calls them.
#define LEPTON_INLINE [[gnu::always_inline]] inline

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

LEPTON_INLINE std::uint32_t bits_of(float value) { return load<std::uint32_t>(&value); }

LEPTON_INLINE float float_of(std::uint32_t bits) { return load<float>(&bits); }

template <bool add>
LEPTON_INLINE void put(float& out, float value) {
  if constexpr (add) {
    out += value;
  } else {
    out = value;
  }
}

// Encodes one block of at most 256 values; returns its scale.
LEPTON_INLINE float encode_int8_block(const float* __restrict x, std::size_t count, std::byte* __restrict codes) {
  // Magnitudes order like their bits, and NaN and Inf are the largest. Signed, since SSE2 has no unsigned compare.
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bits_of(x[i]) & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  const float amax = float_of(static_cast<std::uint32_t>(largest));
  if (!(amax <= std::numeric_limits<float>::max())) {
    std::memset(codes, 0, count);
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = amax / kMaxCode;
  if (scale < std::numeric_limits<float>::min()) {  // zero or subnormal: 127 / amax could overflow
    std::memset(codes, 0, count);
    return 0.0f;
  }
  const float codes_per_unit = kMaxCode / amax;
  for (std::size_t i = 0; i < count; ++i) {
    store(codes + i, static_cast<std::uint8_t>(bits_of(x[i] * codes_per_unit + kRoundingMagic)));
  }
  return scale;
}

LEPTON_SIMD void encode_int8(const float* __restrict x, std::size_t n, std::byte* __restrict out) {
  const std::size_t num_full = n / kInt8Block;
  std::byte* codes = out + sizeof(float) * ((n + kInt8Block - 1) / kInt8Block);
  for (std::size_t block = 0; block < num_full; ++block) {
    const std::size_t start = block * kInt8Block;
    store(out + sizeof(float) * block, encode_int8_block(x + start, kInt8Block, codes + start));
  }
  const std::size_t start = num_full * kInt8Block;
  if (start < n) store(out + sizeof(float) * num_full, encode_int8_block(x + start, n - start, codes + start));
}

template <bool add>
LEPTON_INLINE void decode_int8_block(float scale, const std::byte* __restrict codes, std::size_t count,
                                     float* __restrict out) {
  for (std::size_t i = 0; i < count; ++i) {
    put<add>(out[i], static_cast<float>(load<std::int8_t>(codes + i)) * scale);
  }
}

template <bool add>
LEPTON_INLINE void decode_int8_blocks(const std::byte* __restrict payload, std::size_t n, float* __restrict out) {
  const std::size_t num_full = n / kInt8Block;
  const std::byte* codes = payload + sizeof(float) * ((n + kInt8Block - 1) / kInt8Block);
  for (std::size_t block = 0; block < num_full; ++block) {
    const std::size_t start = block * kInt8Block;
    decode_int8_block<add>(load<float>(payload + sizeof(float) * block), codes + start, kInt8Block, out + start);
  }
  const std::size_t start = num_full * kInt8Block;
  if (start < n) {
    decode_int8_block<add>(load<float>(payload + sizeof(float) * num_full), codes + start, n - start, out + start);
  }
}

LEPTON_SIMD void decode_int8(const std::byte* payload, std::size_t n, float* out) {
  decode_int8_blocks<false>(payload, n, out);
}

LEPTON_SIMD void decode_add_int8(const std::byte* payload, std::size_t n, float* out) {
  decode_int8_blocks<true>(payload, n, out);
}

LEPTON_SIMD void encode_bf16(const float* __restrict x, std::size_t n, std::byte* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) store(out + 2 * i, bf16_bits(bits_of(x[i])));
}

LEPTON_SIMD void decode_bf16(const std::byte* __restrict payload, std::size_t n, float* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = float_of(fp32_bits(load<std::uint16_t>(payload + 2 * i)));
}

LEPTON_SIMD void decode_add_bf16(const std::byte* __restrict payload, std::size_t n, float* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) out[i] += float_of(fp32_bits(load<std::uint16_t>(payload + 2 * i)));
}

LEPTON_SIMD void decode_add_exact(const std::byte* __restrict payload, std::size_t n, float* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) out[i] += load<float>(payload + sizeof(float) * i);
}

[[noreturn]] void throw_unknown(Codec codec) {
  throw std::invalid_argument("expected codec 0 (exact), 1 (bf16) or 2 (int8), received " +
                              std::to_string(static_cast<int>(codec)));
}

}  // namespace

std::size_t block_values(Codec codec) {
  switch (codec) {
    case Codec::exact:
    case Codec::bf16:
      return 1;
    case Codec::int8:
      return kInt8Block;
  }
  throw_unknown(codec);
}

std::size_t encoded_nbytes(Codec codec, std::size_t n) {
  switch (codec) {
    case Codec::exact:
      return sizeof(float) * n;
    case Codec::bf16:
      return sizeof(std::uint16_t) * n;
    case Codec::int8:
      return sizeof(float) * ((n + kInt8Block - 1) / kInt8Block) + n;
  }
  throw_unknown(codec);
}

void encode(Codec codec, const float* x, std::size_t n, std::byte* out) {
  switch (codec) {
    case Codec::exact:
      if (n > 0) std::memcpy(out, x, sizeof(float) * n);
      return;
    case Codec::bf16:
      return encode_bf16(x, n, out);
    case Codec::int8:
      return encode_int8(x, n, out);
  }
  throw_unknown(codec);
}

void decode(Codec codec, const std::byte* payload, std::size_t n, float* out) {
  switch (codec) {
    case Codec::exact:
      if (n > 0) std::memcpy(out, payload, sizeof(float) * n);
      return;
    case Codec::bf16:
      return decode_bf16(payload, n, out);
    case Codec::int8:
      return decode_int8(payload, n, out);
  }
  throw_unknown(codec);
}

void decode_add(Codec codec, const std::byte* payload, std::size_t n, float* out) {
  switch (codec) {
    case Codec::exact:
      return decode_add_exact(payload, n, out);
    case Codec::bf16:
      return decode_add_bf16(payload, n, out);
    case Codec::int8:
      return decode_add_int8(payload, n, out);
  }
  throw_unknown(codec);
}

}  // namespace lepton
