// Sums in rank order, the same bits wherever they run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lepton/codec.hpp"

namespace lepton {

// out[i] = (((s0[i] + s1[i]) + s2[i]) + ...) for lo <= i < hi; out may be one of the sources.
void sum_slices(const std::vector<float*>& sources, std::int64_t lo, std::int64_t hi, float* out);

// sum[i] = the values of `num_peers` payloads in peer order, where the place of `own` is taken by
// what `sum` holds on entry. Payload p starts at payloads + p * payload_nbytes.
void add_payloads(Codec codec, const std::byte* payloads, std::size_t payload_nbytes, int num_peers, int own,
                  std::size_t n, float* sum);

}  // namespace lepton
