// Softmax of rows of scores under a causal limit and a key mask. All functions are thread-safe, allocate one row and
// give the same bits on every CPU. Dims: B batch, H heads, Q queries, K keys.
#pragma once

#include <cstddef>

namespace lepton {

// Query i of a head sees keys 0 .. min(first_query + i, K - 1); not_causal: all keys.
struct ScoreShape {
  std::size_t batch;
  std::size_t heads;
  std::size_t queries;
  std::size_t keys;
  std::ptrdiff_t first_query;
};

inline constexpr std::ptrdiff_t not_causal = -1;

// Replaces each row of scores [B, H, Q, K] by softmax(scale * scores) over the keys that the query sees and whose
// mask [B, K] is true; 0 elsewhere, and everywhere in a row without such a key. Null mask: all true. A sum puts
// element i into lane i % 16 and then adds the lanes pairwise (8, 4, 2, 1).
void softmax(float* scores, const bool* key_mask, const ScoreShape& shape, float scale);

// Replaces dp [B, H, Q, K] by scale * p * (dp - sum_k(dp * p)), the gradient of the scores; 0 where the query does
// not see the key.
void softmax_backward(float* dp, const float* p, const ScoreShape& shape, float scale);

}  // namespace lepton
