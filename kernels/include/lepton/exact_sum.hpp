// Sums that do not depend on the order of their terms: every term is first rounded to a multiple of a unit, a power of
// two so large that no sum of such multiples needs more than the 53 bits of a double. All additions are then exact
// (Demmel and Nguyen 2013, "Fast reproducible floating-point summation", section III). Thread-safe, no allocation, the
// same bits on every CPU.
#pragma once

#include <cstddef>
#include <vector>

namespace lepton {

// totals[i] += grads[i] rounded to a multiple of unit (nearest even); grads[i] = 0. Returns the largest magnitude among
// grads; NaN or infinity if one of them is. Exact while every total stays below 2^52 units.
float accumulate_rounded(float* grads, double* totals, std::size_t n, double unit);

// out[i] = the sum of totals[k][i] over k, rounded once; totals[k][i] = 0.
void collect_totals(const std::vector<double*>& totals, std::size_t n, float* out);
void collect_totals(const std::vector<double*>& totals, std::size_t n, double* out);

struct ExactSquares {
  double high;  // a multiple of unit
  double low;   // of what the rounding to unit left, a multiple of unit * 2^-low_bits
};

// Sum of squares in two exact parts: squares rounded to multiples of `unit`, and their remainders to multiples of
// `low_unit`.
ExactSquares exact_squares(const float* x, std::size_t n, double unit, double low_unit);

// Largest magnitude; NaN or infinity if a value is.
float largest_magnitude(const float* x, std::size_t n);

}  // namespace lepton
