#include "lepton/low_rank.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lepton/simd.hpp"

namespace lepton {
namespace {

constexpr std::size_t kLanes = 16;
// Elements of a row that are rebuilt at a time.
constexpr std::size_t kStrip = 256;
// A vector that loses all but this share of its length to the earlier ones holds rounding errors only.
constexpr double kVanished = 1e-6;

// Calls of a piece of one row each: (row, first column, elements, where in the run).
template <class Piece>
void for_each_row(std::size_t columns, std::size_t first, std::size_t count, const Piece& piece) {
  for (std::size_t at = 0; at < count;) {
    const std::size_t row = (first + at) / columns, column = (first + at) % columns;
    const std::size_t n = std::min(columns - column, count - at);
    piece(row, column, n, at);
    at += n;
  }
}

LEPTON_SIMD float dot(const float* x, const float* y, std::size_t n) {
  float lanes[kLanes] = {};
  const std::size_t whole = n - n % kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * y[i + l];
  for (std::size_t i = whole; i < n; ++i) lanes[i - whole] += x[i] * y[i];
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

LEPTON_SIMD void add_multiple(const float* x, float factor, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

LEPTON_SIMD void multiply(const float* x, float factor, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; ++i) y[i] = factor * x[i];
}

LEPTON_SIMD void leave(const float* x, const float* product, float part, std::size_t n, float* residual) {
  for (std::size_t i = 0; i < n; ++i) {
    const float rest = x[i] - part * product[i];
    residual[i] = std::fabs(rest) <= std::numeric_limits<float>::max() ? rest : residual[i];
  }
}

double length_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  return std::sqrt(sum);
}

// Leaves of a vector what is beside the first `earlier` vectors of a basis, with length 1; false where nothing is.
bool normalise_rest(std::vector<double>& x, const std::vector<std::vector<double>>& basis, std::size_t earlier) {
  double largest = 0;
  for (const double value : x) largest = std::max(largest, std::fabs(value));
  if (largest == 0) return false;
  for (double& value : x) value /= largest;
  const double before = length_of(x);
  for (int pass = 0; pass < 2; ++pass) {  // "twice is enough": Giraud, Langou, Rozloznik, 2005
    for (std::size_t k = 0; k < earlier; ++k) {
      double along = 0;
      for (std::size_t i = 0; i < x.size(); ++i) along += x[i] * basis[k][i];
      for (std::size_t i = 0; i < x.size(); ++i) x[i] -= along * basis[k][i];
    }
  }
  const double after = length_of(x);
  if (!(after > kVanished * before)) return false;
  for (double& value : x) value /= after;
  return true;
}

}  // namespace

void low_rank_project_rows(const LowRankShape& shape, const float* x, std::size_t first, std::size_t count,
                           const float* column_factor, float* row_factor) {
  for_each_row(shape.columns, first, count, [&](std::size_t row, std::size_t column, std::size_t n, std::size_t at) {
    for (std::size_t k = 0; k < shape.rank; ++k)
      row_factor[k * shape.rows + row] += dot(x + at, column_factor + k * shape.columns + column, n);
  });
}

void low_rank_project_columns(const LowRankShape& shape, const float* x, std::size_t first, std::size_t count,
                              const float* row_factor, float* column_factor) {
  for_each_row(shape.columns, first, count, [&](std::size_t row, std::size_t column, std::size_t n, std::size_t at) {
    for (std::size_t k = 0; k < shape.rank; ++k)
      add_multiple(x + at, row_factor[k * shape.rows + row], n, column_factor + k * shape.columns + column);
  });
}

void low_rank_rebuild(const LowRankShape& shape, float* x, std::size_t first, std::size_t count,
                      const float* row_factor, const float* column_factor, float scale, float* residual, float part) {
  float product[kStrip];
  for_each_row(shape.columns, first, count, [&](std::size_t row, std::size_t column, std::size_t n, std::size_t at) {
    for (std::size_t done = 0; done < n; done += kStrip) {
      const std::size_t strip = std::min(kStrip, n - done);
      const float* const columns = column_factor + column + done;
      multiply(columns, row_factor[row], strip, product);
      for (std::size_t k = 1; k < shape.rank; ++k)
        add_multiple(columns + k * shape.columns, row_factor[k * shape.rows + row], strip, product);
      if (residual != nullptr) leave(x + at + done, product, part, strip, residual + at + done);
      multiply(product, scale, strip, x + at + done);
    }
  });
}

void orthogonalise(float* factor, std::size_t rank, std::size_t length) {
  if (!std::all_of(factor, factor + rank * length, [](float value) { return std::isfinite(value); })) {
    std::fill(factor, factor + rank * length, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  std::vector<std::vector<double>> basis;
  std::size_t unit = 0;
  for (std::size_t k = 0; k < rank; ++k) {
    float* const vector = factor + k * length;
    if (k >= length) {
      std::fill(vector, vector + length, 0.0f);
      continue;
    }
    std::vector<double> direction(vector, vector + length);
    while (!normalise_rest(direction, basis, k)) {
      direction.assign(length, 0.0);
      direction[unit++] = 1.0;
    }
    std::copy(direction.begin(), direction.end(), vector);
    basis.push_back(std::move(direction));
  }
}

}  // namespace lepton
