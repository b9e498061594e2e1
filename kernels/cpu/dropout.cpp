#include "lepton/dropout.hpp"

#include "lepton/philox.hpp"
#include "lepton/simd.hpp"

#include <algorithm>
#include <cstring>

namespace lepton {
namespace {

constexpr std::size_t kChunkCounters = 128;
constexpr std::size_t kChunk = 4 * kChunkCounters;  // elements whose mask is drawn at a time: stays in the first cache

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
constexpr unsigned kShifts[4] = {24, 16, 8, 0};
#else
constexpr unsigned kShifts[4] = {0, 8, 16, 24};
#endif

// Four mask bytes for each of `count` counters from `counter` on; `step` is the upper half of all.
LEPTON_SIMD void draw_chunk(std::uint64_t counter, std::uint64_t step, std::uint64_t key, std::uint32_t threshold,
                            std::uint32_t count, std::uint32_t* __restrict bytes) {
  const auto low = static_cast<std::uint32_t>(counter);
  const auto high = static_cast<std::uint32_t>(counter >> 32);
  const auto key_low = static_cast<std::uint32_t>(key);
  const auto key_high = static_cast<std::uint32_t>(key >> 32);
  for (std::uint32_t i = 0; i < count; ++i) {
    std::uint32_t c0 = low + i;
    std::uint32_t c1 = high + (c0 < low ? 1u : 0u);
    auto c2 = static_cast<std::uint32_t>(step);
    auto c3 = static_cast<std::uint32_t>(step >> 32);
    philox(c0, c1, c2, c3, key_low, key_high);
    bytes[i] = (c0 >= threshold ? 1u << kShifts[0] : 0u) | (c1 >= threshold ? 1u << kShifts[1] : 0u) |
               (c2 >= threshold ? 1u << kShifts[2] : 0u) | (c3 >= threshold ? 1u << kShifts[3] : 0u);
  }
}

LEPTON_SIMD void apply(const float* __restrict x, const std::uint8_t* __restrict mask, float scale, float* __restrict y,
                       std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i] * (mask[i] != 0 ? scale : 0.0f);
}

// Draws the mask of elements first .. first + n of the global array.
void draw(const DropoutRows& at, std::uint64_t first, std::size_t n, std::uint8_t* mask) {
  std::uint32_t words[kChunkCounters];
  std::size_t done = 0;
  while (done < n) {
    const std::uint64_t counter = (first + done) / 4;
    const std::size_t skip = (first + done) % 4;
    const std::size_t count = std::min(n - done, kChunk - skip);
    draw_chunk(counter, at.step, at.key, at.threshold, static_cast<std::uint32_t>((skip + count + 3) / 4), words);
    std::memcpy(mask + done, reinterpret_cast<const char*>(words) + skip, count);
    done += count;
  }
}

}  // namespace

void dropout_mask(const DropoutRows& at, std::uint8_t* mask) {
  const std::uint64_t start = at.first_row * at.row_size + at.row_start;
  if (at.n == at.row_size) {  // rows follow each other: one run
    draw(at, start, at.rows * at.n, mask);
    return;
  }
  for (std::size_t row = 0; row < at.rows; ++row) draw(at, start + row * at.row_size, at.n, mask + row * at.n);
}

void dropout(const DropoutRows& at, const float* x, float scale, float* y, std::uint8_t* mask) {
  dropout_mask(at, mask);
  apply(x, mask, scale, y, at.rows * at.n);
}

void apply_mask(const float* x, const std::uint8_t* mask, float scale, float* y, std::size_t n) {
  apply(x, mask, scale, y, n);
}

}  // namespace lepton
