// Batch normalisation of rows [N, C], one pass each. Sums are in double and in the order of the rows: four rows at a
// time are added to each other, then to the sum.
#pragma once

#include <cstdint>

namespace lepton {

// mean[c] and squares[c], the sum of squared distances from it, of n > 0 rows; the first row serves as shift, so that
// a large mean costs no digits (Chan, Golub and LeVeque 1983, section 3).
void channel_moments(const float* x, std::int64_t n, std::int64_t channels, double* mean, double* squares);

// y = (x - mean) * scale + shift, per channel.
void channel_affine(const float* x, std::int64_t n, std::int64_t channels, const float* mean, const float* scale,
                    const float* shift, float* y);

// sum_dy[c] = sum of dy, sum_dy_x[c] = sum of dy * (x - mean).
void channel_gradient_sums(const float* dy, const float* x, std::int64_t n, std::int64_t channels, const double* mean,
                           double* sum_dy, double* sum_dy_x);

// dx = dy * scale + (x - mean) * slope + shift, per channel.
void channel_gradient(const float* dy, const float* x, std::int64_t n, std::int64_t channels, const float* mean,
                      const float* scale, const float* slope, const float* shift, float* dx);

}  // namespace lepton
