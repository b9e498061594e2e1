// What the digest programs share: numbers to compute with, and hashes of results. Each program prints one line a
// result; test_simd_clones.py compiles it once per instruction set, and all must print the same.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace digest {

// xorshift64 of Marsaglia, "Xorshift RNGs", 2003.
inline std::uint64_t next(std::uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

// Numbers of many magnitudes up to 256, from random mantissas, signs and exponents.
inline std::vector<float> make_values(std::size_t n, std::uint64_t seed) {
  std::vector<float> values(n);
  for (float& value : values) {
    const std::uint64_t bits = next(seed);
    const auto mantissa = static_cast<float>(static_cast<std::int32_t>(bits & 0xffffffu) - 0x800000);
    value = std::ldexp(mantissa, static_cast<int>((bits >> 32) % 12) - 26);
  }
  return values;
}

// The same with every 97th of them infinite, negative zero, subnormal or not a number.
inline std::vector<float> make_extremes(std::size_t n, std::uint64_t seed) {
  using Limits = std::numeric_limits<float>;
  const float extremes[] = {Limits::infinity(), -Limits::infinity(), -0.0f,         Limits::denorm_min(),
                            Limits::max(),      Limits::lowest(),    Limits::min(), Limits::quiet_NaN()};
  std::vector<float> values = make_values(n, seed);
  for (std::size_t i = 5, k = 0; i < n; i += 97, ++k) values[i] = extremes[k % 8];
  return values;
}

// Integers in [0, limit).
inline std::vector<std::int64_t> make_integers(std::size_t n, std::uint64_t limit, std::uint64_t seed) {
  std::vector<std::int64_t> values(n);
  for (std::int64_t& value : values) value = static_cast<std::int64_t>((next(seed) >> 16) % limit);
  return values;
}

// FNV-1a, draft-eastlake-fnv.
inline void show(const std::string& name, const void* data, std::size_t nbytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < nbytes; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  }
  std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(hash));
}

template <typename T>
void show(const std::string& name, const std::vector<T>& values) {
  show(name, values.data(), values.size() * sizeof(T));
}

// Sign and payload of a NaN that arithmetic made depend on the order of the operands, which is the compiler's choice.
inline void show(const std::string& name, std::vector<float> values) {
  for (float& value : values) value = std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : value;
  show(name, values.data(), values.size() * sizeof(float));
}

}  // namespace digest
