#include "lepton/low_rank.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <tuple>

namespace py = pybind11;

namespace lepton {
namespace {

using Shape = std::tuple<std::size_t, std::size_t, std::size_t>;

// The shape, once the factors and the run are seen to fit it.
LowRankShape checked(const Shape& shape, std::size_t first, const FloatArray& x, const FloatArray& row_factor,
                     const FloatArray& column_factor) {
  const auto [rows, columns, rank] = shape;
  checked_size(row_factor, "row_factor", rows * rank);
  checked_size(column_factor, "column_factor", columns * rank);
  if (first + checked_size(x, "x") > rows * columns) throw std::invalid_argument("x: the run ends outside the matrix");
  return {rows, columns, rank};
}

void project_rows(const Shape& shape, const FloatArray& x, std::size_t first, const FloatArray& column_factor,
                  FloatArray& row_factor) {
  const LowRankShape s = checked(shape, first, x, row_factor, column_factor);
  const auto n = static_cast<std::size_t>(x.size());
  const float *from = x.data(), *other = column_factor.data();
  float* to = row_factor.mutable_data();
  const py::gil_scoped_release unlocked;
  low_rank_project_rows(s, from, first, n, other, to);
}

void project_columns(const Shape& shape, const FloatArray& x, std::size_t first, const FloatArray& row_factor,
                     FloatArray& column_factor) {
  const LowRankShape s = checked(shape, first, x, row_factor, column_factor);
  const auto n = static_cast<std::size_t>(x.size());
  const float *from = x.data(), *other = row_factor.data();
  float* to = column_factor.mutable_data();
  const py::gil_scoped_release unlocked;
  low_rank_project_columns(s, from, first, n, other, to);
}

void rebuild(const Shape& shape, FloatArray& x, std::size_t first, const FloatArray& row_factor,
             const FloatArray& column_factor, float scale, std::optional<FloatArray>& residual, float part) {
  const LowRankShape s = checked(shape, first, x, row_factor, column_factor);
  const auto n = static_cast<std::size_t>(x.size());
  if (residual) checked_size(*residual, "residual", n);
  const float *rows = row_factor.data(), *columns = column_factor.data();
  float* values = x.mutable_data();
  float* rest = residual ? residual->mutable_data() : nullptr;
  const py::gil_scoped_release unlocked;
  low_rank_rebuild(s, values, first, n, rows, columns, scale, rest, part);
}

void make_orthogonal(FloatArray& factor, std::size_t rank) {
  const std::size_t n = checked_size(factor, "factor");
  if (rank == 0 || n % rank != 0) throw std::invalid_argument("factor: expected whole vectors");
  float* values = factor.mutable_data();
  const py::gil_scoped_release unlocked;
  orthogonalise(values, rank, n / rank);
}

}  // namespace

void bind_low_rank(py::module_& m) {
  m.def("low_rank_project_rows", &project_rows, py::arg("shape"), py::arg("x").noconvert(), py::arg("first"),
        py::arg("column_factor").noconvert(), py::arg("row_factor").noconvert());
  m.def("low_rank_project_columns", &project_columns, py::arg("shape"), py::arg("x").noconvert(), py::arg("first"),
        py::arg("row_factor").noconvert(), py::arg("column_factor").noconvert());
  m.def("low_rank_rebuild", &rebuild, py::arg("shape"), py::arg("x").noconvert(), py::arg("first"),
        py::arg("row_factor").noconvert(), py::arg("column_factor").noconvert(), py::arg("scale"),
        py::arg("residual").noconvert(), py::arg("part"));
  m.def("orthogonalise", &make_orthogonal, py::arg("factor").noconvert(), py::arg("rank"));
}

}  // namespace lepton
