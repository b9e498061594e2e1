#include "lepton/embedding.hpp"

#include "lepton/simd.hpp"

namespace lepton {
namespace {

LEPTON_SIMD void add_rows(const float* __restrict rows, const std::int64_t* __restrict ids, std::size_t n,
                          std::int64_t first, float* __restrict table, std::size_t entries, std::size_t features) {
  for (std::size_t i = 0; i < n; ++i) {
    if (ids[i] < first || static_cast<std::uint64_t>(ids[i] - first) >= entries) continue;
    const float* from = rows + i * features;
    float* to = table + static_cast<std::size_t>(ids[i] - first) * features;
    for (std::size_t feature = 0; feature < features; ++feature) to[feature] += from[feature];
  }
}

}  // namespace

void embedding_add(const float* rows, const std::int64_t* ids, std::size_t n, std::int64_t first, float* table,
                   std::size_t entries, std::size_t features) {
  add_rows(rows, ids, n, first, table, entries, features);
}

}  // namespace lepton
