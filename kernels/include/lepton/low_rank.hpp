// Matrices as products of two thin factors, for PowerSGD (Vogels et al., NeurIPS 2019). A factor holds its vectors one
// after the other: [rank, rows] and [rank, columns]. A run is a range of the elements of a row-major matrix, so that
// ranks may divide a matrix anywhere. All functions are thread-safe; sums keep one order, so that the same input gives
// the same bits on every CPU.
#pragma once

#include <cstddef>

namespace lepton {

struct LowRankShape {
  std::size_t rows, columns, rank;
};

// row_factor[k][r] += sum over the run's elements (r, c) of x * column_factor[k][c]; x points to the run's first
// element.
void low_rank_project_rows(const LowRankShape& shape, const float* x, std::size_t first, std::size_t count,
                           const float* column_factor, float* row_factor);

// column_factor[k][c] += sum over the run's elements (r, c) of x * row_factor[k][r].
void low_rank_project_columns(const LowRankShape& shape, const float* x, std::size_t first, std::size_t count,
                              const float* row_factor, float* column_factor);

// Replaces the run's elements by those of the product of the factors, times scale. With a residual (of the run), that
// becomes element - part * (unscaled product), where this is finite.
void low_rank_rebuild(const LowRankShape& shape, float* x, std::size_t first, std::size_t count,
                      const float* row_factor, const float* column_factor, float scale, float* residual, float part);

// Replaces the vectors of a factor by an orthonormal basis, by Gram and Schmidt, in double and twice. A vector that
// depends on the earlier ones is replaced by the first unit vectors that do not; vectors beyond the length are zero.
// With a NaN or an infinity in it all of the factor becomes NaN.
void orthogonalise(float* factor, std::size_t rank, std::size_t length);

}  // namespace lepton
