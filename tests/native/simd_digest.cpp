// Prints the bytes that the codecs and the updates produce, as hashes. Compiled by test_simd_clones.py once per
// instruction set: all must print the same.
#include "lepton/codec.hpp"
#include "lepton/update.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

// Numbers of many magnitudes: xorshift64 (Marsaglia, "Xorshift RNGs", 2003) into mantissa, sign and exponent.
std::vector<float> make_values(std::size_t n, std::uint64_t state) {
  std::vector<float> values(n);
  for (float& value : values) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const auto mantissa = static_cast<float>(static_cast<std::int32_t>(state & 0xffffffu) - 0x800000);
    value = std::ldexp(mantissa, static_cast<int>((state >> 32) % 12) - 26);
  }
  return values;
}

// FNV-1a, draft-eastlake-fnv.
std::uint64_t digest(const void* data, std::size_t nbytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < nbytes; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  }
  return hash;
}

void show(const char* name, const void* data, std::size_t nbytes) {
  std::printf("%s %016llx\n", name, static_cast<unsigned long long>(digest(data, nbytes)));
}

void show(const char* name, const std::vector<float>& values) {
  show(name, values.data(), values.size() * sizeof(float));
}

}  // namespace

int main() {
  using namespace lepton;
  const std::size_t n = 100003;
  std::vector<float> x = make_values(n, 1);
  for (const Codec codec : {Codec::exact, Codec::bf16, Codec::int8}) {
    std::vector<std::byte> payload(encoded_nbytes(codec, n) + 1);
    std::vector<float> out = make_values(n, 2);
    encode(codec, x.data(), n, payload.data() + 1);
    show("payload", payload.data(), payload.size());
    decode_add(codec, payload.data() + 1, n, out.data());
    show("decode_add", out);
    decode(codec, payload.data() + 1, n, out.data());
    show("decode", out);
  }
  std::vector<float> values = make_values(n, 3), m = make_values(n, 4), v(n, 0.0f);
  sgd_update(values.data(), x.data(), nullptr, n, 0.03, 0.0, 0.01, 0.37);
  show("sgd", values);
  sgd_update(values.data(), x.data(), m.data(), n, 0.03, 0.9, 0.01, 0.37);
  show("sgd with momentum", values);
  for (int step = 1; step <= 3; ++step) {
    adamw_update(values.data(), x.data(), m.data(), v.data(), n, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.37, step);
  }
  show("adamw", values);
  const double sum = sum_of_squares(x.data(), n);
  show("sum of squares", &sum, sizeof sum);
}
