// Normalisation of fp32 rows over their features. All functions are thread-safe and give the same bits on every CPU: a
// row is summed in 16 lanes (feature i goes to lane i % 16), which are then added pairwise (8, 4, 2, 1); sums over rows
// go by 64 rows in order, and then over these groups in order. Outputs must not overlap inputs.
#pragma once

#include <cstddef>

namespace lepton {

// y = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(variance + epsilon), the biased variance, in two passes
// over a row. Ba, Kiros, Hinton, "Layer normalization", 2016. x, y [rows, features]; weight, bias [features], bias may
// be null; mean, rstd [rows] are written.
void layer_norm(const float* x, const float* weight, const float* bias, float* y, float* mean, float* rstd,
                std::size_t rows, std::size_t features, float epsilon);

// dx [rows, features] is written, dweight and dbias [features] are written; dx and dbias may be null.
void layer_norm_backward(const float* dy, const float* x, const float* weight, const float* mean, const float* rstd,
                         float* dx, float* dweight, float* dbias, std::size_t rows, std::size_t features);

// y = x * rstd * weight with rstd = 1 / sqrt(mean of x^2 + epsilon). Zhang, Sennrich, "Root mean square layer
// normalization", 2019.
void rms_norm(const float* x, const float* weight, float* y, float* rstd, std::size_t rows, std::size_t features,
              float epsilon);

void rms_norm_backward(const float* dy, const float* x, const float* weight, const float* rstd, float* dx,
                       float* dweight, std::size_t rows, std::size_t features);

}  // namespace lepton
