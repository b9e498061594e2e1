#include "lepton/sum.hpp"

#include <algorithm>
#include <cstring>

#include "lepton/simd.hpp"

namespace lepton {
namespace {

// Values summed at a time: small enough for the first-level cache, large enough for the prefetcher.
constexpr std::size_t kTile = 2048;

LEPTON_SIMD void add2(const float* a, const float* b, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

LEPTON_SIMD void add3(const float* a, const float* b, const float* c, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = (a[i] + b[i]) + c[i];
}

LEPTON_SIMD void add4(const float* a, const float* b, const float* c, const float* d, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = ((a[i] + b[i]) + c[i]) + d[i];
}

}  // namespace

void sum_slices(const std::vector<float*>& sources, std::int64_t lo, std::int64_t hi, float* out) {
  float tile[kTile];
  const std::size_t num = sources.size();
  for (std::int64_t at = lo; at < hi; at += static_cast<std::int64_t>(kTile)) {
    const auto n = static_cast<std::size_t>(std::min<std::int64_t>(hi - at, static_cast<std::int64_t>(kTile)));
    const auto source = [&](std::size_t k) { return sources[k] + at; };
    // Up to four sources in one pass, the rest added to the tile in turn, always in rank order. The
    // tile keeps `out`, which may be a later source, untouched until all was read.
    if (num == 1) {
      if (sources[0] != out) std::memcpy(out + at, source(0), n * sizeof(float));
      continue;
    }
    float* const target = num <= 4 ? out + at : tile;
    if (num == 2) {
      add2(source(0), source(1), n, target);
    } else if (num == 3) {
      add3(source(0), source(1), source(2), n, target);
    } else {
      add4(source(0), source(1), source(2), source(3), n, target);
      for (std::size_t k = 4; k < num; ++k) add2(tile, source(k), n, k + 1 == num ? out + at : tile);
    }
  }
}

void add_payloads(Codec codec, const std::byte* payloads, std::size_t payload_nbytes, int num_peers, int own,
                  std::size_t n, float* sum) {
  // In tiles of whole codec blocks for exact and bf16; blocks of int8 keep their scales apart, so
  // that codec is decoded whole into a scratch that then takes part in peer order.
  std::vector<float> total(n);
  for (int p = 0; p < num_peers; ++p) {
    const std::byte* const payload = payloads + static_cast<std::size_t>(p) * payload_nbytes;
    if (p == own) {
      if (p == 0)
        std::copy(sum, sum + n, total.begin());
      else
        add2(total.data(), sum, n, total.data());
    } else if (p == 0) {
      decode(codec, payload, n, total.data());
    } else {
      decode_add(codec, payload, n, total.data());
    }
  }
  std::copy(total.begin(), total.end(), sum);
}

}  // namespace lepton
