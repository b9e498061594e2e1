// The gradient of an embedding table.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

// table[ids[i] - first] += rows[i] for i in order, where that row exists; others are passed over. rows [n, features],
// table [entries, features]. Thread-safe for different tables; allocates nothing.
void embedding_add(const float* rows, const std::int64_t* ids, std::size_t n, std::int64_t first, float* table,
                   std::size_t entries, std::size_t features);

}  // namespace lepton
