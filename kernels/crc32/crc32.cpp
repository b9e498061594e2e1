// Two ways to one number: tables for eight bytes at a time (Kounavis and Berry, "Novel Table Lookup-Based Algorithms
// for High-Performance CRC Generation", 2008), and, where the CPU multiplies polynomials, folding (Gopal et al., "Fast
// CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009), whose constants these are.
#include "lepton/crc32.hpp"

#include <array>

#if defined(__x86_64__) && defined(__GNUC__)
#define LEPTON_CRC32_FOLDS 1
#include <immintrin.h>
#endif

namespace lepton {
namespace {

constexpr std::uint32_t kPolynomial = 0xEDB88320;
constexpr std::size_t kSlices = 8;
using Tables = std::array<std::array<std::uint32_t, 256>, kSlices>;

constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? kPolynomial : 0);
    tables[0][byte] = value;
  }
  for (std::size_t slice = 1; slice < kSlices; ++slice) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[slice - 1][byte];
      tables[slice][byte] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

// Continues on the inverted register, as all of these do between the ends of crc32().
std::uint32_t continue_by_tables(std::uint32_t state, const unsigned char* data, std::size_t size) {
  for (; size >= kSlices; data += kSlices, size -= kSlices) {
    // Byte by byte, so that neither alignment nor byte order matters; compilers make one load of it.
    const std::uint32_t low = state ^ (std::uint32_t{data[0]} | std::uint32_t{data[1]} << 8 |
                                       std::uint32_t{data[2]} << 16 | std::uint32_t{data[3]} << 24);
    state = kTables[7][low & 0xFF] ^ kTables[6][(low >> 8) & 0xFF] ^ kTables[5][(low >> 16) & 0xFF] ^
            kTables[4][low >> 24] ^ kTables[3][data[4]] ^ kTables[2][data[5]] ^ kTables[1][data[6]] ^
            kTables[0][data[7]];
  }
  for (; size > 0; ++data, --size) state = (state >> 8) ^ kTables[0][(state ^ *data) & 0xFF];
  return state;
}

#ifdef LEPTON_CRC32_FOLDS
constexpr std::size_t kBlock = 64;  // four vectors

#define LEPTON_FOLDS __attribute__((target("pclmul,sse4.1")))

LEPTON_FOLDS inline __m128i load(const unsigned char* data) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

// Moves `x` past the bytes that lie between it and `next`, as the constants say how many.
LEPTON_FOLDS inline __m128i fold(__m128i x, __m128i constants, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(x, constants, 0x00), high = _mm_clmulepi64_si128(x, constants, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

// Expects a multiple of 16 bytes, at least kBlock.
LEPTON_FOLDS std::uint32_t continue_by_folding(std::uint32_t state, const unsigned char* data, std::size_t size) {
  const __m128i by_four = _mm_set_epi64x(0x01C6E41596, 0x0154442BD4);  // x^(512-32), x^(512+32) mod P, reflected
  const __m128i by_one = _mm_set_epi64x(0x00CCAA009E, 0x01751997D0);   // x^(128-32), x^(128+32)
  const __m128i by_half = _mm_set_epi64x(0, 0x0163CD6124);             // x^64
  const __m128i barrett = _mm_set_epi64x(0x01F7011641, 0x01DB710641);  // mu, P
  const __m128i low_words = _mm_setr_epi32(~0, 0, ~0, 0);
  __m128i x0 = _mm_xor_si128(load(data), _mm_cvtsi32_si128(static_cast<int>(state)));
  __m128i x1 = load(data + 16), x2 = load(data + 32), x3 = load(data + 48);
  data += kBlock, size -= kBlock;
  for (; size >= kBlock; data += kBlock, size -= kBlock) {
    x0 = fold(x0, by_four, load(data));
    x1 = fold(x1, by_four, load(data + 16));
    x2 = fold(x2, by_four, load(data + 32));
    x3 = fold(x3, by_four, load(data + 48));
  }
  __m128i x = fold(fold(fold(x0, by_one, x1), by_one, x2), by_one, x3);
  for (; size > 0; data += 16, size -= 16) x = fold(x, by_one, load(data));
  // 128 bits to 64, to 32 by Barrett's reduction.
  x = _mm_xor_si128(_mm_srli_si128(x, 8), _mm_clmulepi64_si128(x, by_one, 0x10));
  x = _mm_xor_si128(_mm_srli_si128(x, 4), _mm_clmulepi64_si128(_mm_and_si128(x, low_words), by_half, 0x00));
  __m128i q = _mm_clmulepi64_si128(_mm_and_si128(x, low_words), barrett, 0x10);
  q = _mm_clmulepi64_si128(_mm_and_si128(q, low_words), barrett, 0x00);
  return static_cast<std::uint32_t>(_mm_extract_epi32(_mm_xor_si128(x, q), 1));
}

bool can_fold() {
  static const bool found = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  return found;
}
#endif

}  // namespace

std::uint32_t crc32_by_tables(std::uint32_t before, const unsigned char* data, std::size_t size) {
  return ~continue_by_tables(~before, data, size);
}

std::uint32_t crc32(std::uint32_t before, const unsigned char* data, std::size_t size) {
  std::uint32_t state = ~before;
#ifdef LEPTON_CRC32_FOLDS
  if (size >= kBlock && can_fold()) {
    const std::size_t folded = size / 16 * 16;
    state = continue_by_folding(state, data, folded);
    data += folded, size -= folded;
  }
#endif
  return ~continue_by_tables(state, data, size);
}

}  // namespace lepton
