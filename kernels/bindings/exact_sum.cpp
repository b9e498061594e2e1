#include "lepton/exact_sum.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

namespace py = pybind11;

namespace lepton {
namespace {

using DoubleArray = py::array_t<double, py::array::c_style>;

float bound_accumulate_rounded(FloatArray& grads, DoubleArray& totals, double unit) {
  const std::size_t n = checked_size(grads, "grads");
  checked_size(totals, "totals", n);
  float* grads_data = grads.mutable_data();
  double* totals_data = totals.mutable_data();
  const py::gil_scoped_release unlocked;
  return accumulate_rounded(grads_data, totals_data, n, unit);
}

template <class Array>
void bound_collect_totals(std::vector<DoubleArray>& totals, Array& out) {
  const std::size_t n = checked_size(out, "out");
  std::vector<double*> parts;
  for (DoubleArray& part : totals) {
    checked_size(part, "totals", n);
    parts.push_back(part.mutable_data());
  }
  auto* out_data = out.mutable_data();
  const py::gil_scoped_release unlocked;
  collect_totals(parts, n, out_data);
}

std::pair<double, double> bound_exact_squares(const FloatArray& x, double unit, double low_unit) {
  const std::size_t n = checked_size(x, "x");
  const float* data = x.data();
  const py::gil_scoped_release unlocked;
  const ExactSquares sums = exact_squares(data, n, unit, low_unit);
  return {sums.high, sums.low};
}

float bound_largest_magnitude(const FloatArray& x) {
  const std::size_t n = checked_size(x, "x");
  const float* data = x.data();
  const py::gil_scoped_release unlocked;
  return largest_magnitude(data, n);
}

}  // namespace

void bind_exact_sum(py::module_& m) {
  m.def("accumulate_rounded", &bound_accumulate_rounded, py::arg("grads").noconvert(), py::arg("totals").noconvert(),
        py::arg("unit"));
  m.def("collect_totals", &bound_collect_totals<FloatArray>, py::arg("totals").noconvert(), py::arg("out").noconvert());
  m.def("collect_totals", &bound_collect_totals<DoubleArray>, py::arg("totals").noconvert(),
        py::arg("out").noconvert());
  m.def("exact_squares", &bound_exact_squares, py::arg("x").noconvert(), py::arg("unit"), py::arg("low_unit"));
  m.def("largest_magnitude", &bound_largest_magnitude, py::arg("x").noconvert());
}

}  // namespace lepton
