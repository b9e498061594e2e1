// Products of bfloat16 matrices with fp32 sums on the CPU's matrix or dot-product units, by oneDNN.
// Part of the extension `_onednn`, which is only built where oneDNN is found.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

// A batch of matrices in fp32, of which one dim is contiguous: element (b, i, j) lies at
// data[b * batch_stride + i * row_stride + j * column_stride], where one of the last two strides is 1.
struct MatrixBatch {
  const float* data;
  std::int64_t batch;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t batch_stride;
  std::int64_t row_stride;
  std::int64_t column_stride;
};

// Whether this CPU multiplies bfloat16 in hardware and oneDNN uses it (AVX512-BF16 or AMX).
bool has_bf16_unit();

// y [batch, M, N] = a [batch, M, K] b [batch, K, N] with operands rounded to bfloat16, ties to even, and sums in fp32.
// A batch of 1 goes with any other. y is contiguous and does not overlap the operands; no dim is 0. Throws
// std::runtime_error with oneDNN's message. Uses as many threads as OpenMP is set to.
void bf16_product(const MatrixBatch& a, const MatrixBatch& b, float* y);

}  // namespace lepton
