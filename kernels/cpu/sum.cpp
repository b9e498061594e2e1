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

LEPTON_SIMD void add_to(const float* __restrict x, std::size_t n, float* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) out[i] += x[i];
}

LEPTON_SIMD void copy_scaled(const float* x, std::size_t n, float scale, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = x[i] * scale;
}

}  // namespace lepton
