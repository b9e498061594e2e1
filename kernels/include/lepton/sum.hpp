// Sums in rank order and what goes with them, the same bits wherever they run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lepton {

// out[i] = (((s0[i] + s1[i]) + s2[i]) + ...) for lo <= i < hi; out may be one of the sources.
void sum_slices(const std::vector<float*>& sources, std::int64_t lo, std::int64_t hi, float* out);

// out[i] += x[i]; they must not overlap.
void add_to(const float* x, std::size_t n, float* out);

// out[i] = x[i] * scale; out may be x.
void copy_scaled(const float* x, std::size_t n, float scale, float* out);

}  // namespace lepton
