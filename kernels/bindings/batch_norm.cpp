#include "lepton/batch_norm.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace lepton {
namespace {

using DoubleArray = py::array_t<double, py::array::c_style>;

struct Rows {
  std::int64_t n, channels;
};

Rows checked_rows(const FloatArray& x, const char* name) {
  if (x.ndim() != 2) throw std::invalid_argument(std::string(name) + ": expected 2 dims [N, C]");
  return {x.shape(0), x.shape(1)};
}

void require_same(const FloatArray& array, const char* name, const Rows& rows) {
  const Rows received = checked_rows(array, name);
  if (received.n != rows.n || received.channels != rows.channels) {
    throw std::invalid_argument(std::string(name) + ": expected the shape of x");
  }
}

void bound_moments(const FloatArray& x, DoubleArray& mean, DoubleArray& squares) {
  const Rows rows = checked_rows(x, "x");
  if (rows.n == 0) throw std::invalid_argument("x: expected at least one row");
  checked_size(mean, "mean", rows.channels);
  checked_size(squares, "squares", rows.channels);
  const float* from = x.data();
  double* mean_data = mean.mutable_data();
  double* squares_data = squares.mutable_data();
  const py::gil_scoped_release unlocked;
  channel_moments(from, rows.n, rows.channels, mean_data, squares_data);
}

void bound_affine(const FloatArray& x, const FloatArray& mean, const FloatArray& scale, const FloatArray& shift,
                  FloatArray& y) {
  const Rows rows = checked_rows(x, "x");
  require_same(y, "y", rows);
  checked_size(mean, "mean", rows.channels);
  checked_size(scale, "scale", rows.channels);
  checked_size(shift, "shift", rows.channels);
  const float* from = x.data();
  float* to = y.mutable_data();
  const py::gil_scoped_release unlocked;
  channel_affine(from, rows.n, rows.channels, mean.data(), scale.data(), shift.data(), to);
}

void bound_gradient_sums(const FloatArray& dy, const FloatArray& x, const DoubleArray& mean, DoubleArray& sum_dy,
                         DoubleArray& sum_dy_x) {
  const Rows rows = checked_rows(x, "x");
  require_same(dy, "dy", rows);
  checked_size(mean, "mean", rows.channels);
  checked_size(sum_dy, "sum_dy", rows.channels);
  checked_size(sum_dy_x, "sum_dy_x", rows.channels);
  double* sum_dy_data = sum_dy.mutable_data();
  double* sum_dy_x_data = sum_dy_x.mutable_data();
  const py::gil_scoped_release unlocked;
  channel_gradient_sums(dy.data(), x.data(), rows.n, rows.channels, mean.data(), sum_dy_data, sum_dy_x_data);
}

void bound_gradient(const FloatArray& dy, const FloatArray& x, const FloatArray& mean, const FloatArray& scale,
                    const FloatArray& slope, const FloatArray& shift, FloatArray& dx) {
  const Rows rows = checked_rows(x, "x");
  require_same(dy, "dy", rows);
  require_same(dx, "dx", rows);
  checked_size(mean, "mean", rows.channels);
  checked_size(scale, "scale", rows.channels);
  checked_size(slope, "slope", rows.channels);
  checked_size(shift, "shift", rows.channels);
  float* to = dx.mutable_data();
  const py::gil_scoped_release unlocked;
  channel_gradient(dy.data(), x.data(), rows.n, rows.channels, mean.data(), scale.data(), slope.data(), shift.data(),
                   to);
}

}  // namespace

void bind_batch_norm(py::module_& m) {
  m.def("channel_moments", &bound_moments, py::arg("x").noconvert(), py::arg("mean").noconvert(),
        py::arg("squares").noconvert());
  m.def("channel_affine", &bound_affine, py::arg("x").noconvert(), py::arg("mean").noconvert(),
        py::arg("scale").noconvert(), py::arg("shift").noconvert(), py::arg("y").noconvert());
  m.def("channel_gradient_sums", &bound_gradient_sums, py::arg("dy").noconvert(), py::arg("x").noconvert(),
        py::arg("mean").noconvert(), py::arg("sum_dy").noconvert(), py::arg("sum_dy_x").noconvert());
  m.def("channel_gradient", &bound_gradient, py::arg("dy").noconvert(), py::arg("x").noconvert(),
        py::arg("mean").noconvert(), py::arg("scale").noconvert(), py::arg("slope").noconvert(),
        py::arg("shift").noconvert(), py::arg("dx").noconvert());
}

}  // namespace lepton
