#include "lepton/normalisation.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

namespace py = pybind11;

namespace lepton {
namespace {

void bound_layer_norm(const FloatArray& x, const FloatArray& weight, const std::optional<FloatArray>& bias,
                      FloatArray& y, FloatArray& mean, FloatArray& rstd, float epsilon) {
  const std::size_t features = checked_size(weight, "weight");
  const std::size_t rows = checked_size(mean, "mean");
  checked_size(rstd, "rstd", rows);
  checked_size(x, "x", rows * features);
  checked_size(y, "y", rows * features);
  if (bias) checked_size(*bias, "bias", features);
  const float* x_data = x.data();
  const float* weight_data = weight.data();
  const float* bias_data = bias ? bias->data() : nullptr;
  float* y_data = y.mutable_data();
  float* mean_data = mean.mutable_data();
  float* rstd_data = rstd.mutable_data();
  const py::gil_scoped_release unlocked;
  layer_norm(x_data, weight_data, bias_data, y_data, mean_data, rstd_data, rows, features, epsilon);
}

void bound_layer_norm_backward(const FloatArray& dy, const FloatArray& x, const FloatArray& weight,
                               const FloatArray& mean, const FloatArray& rstd, std::optional<FloatArray>& dx,
                               FloatArray& dweight, std::optional<FloatArray>& dbias) {
  const std::size_t features = checked_size(weight, "weight");
  const std::size_t rows = checked_size(mean, "mean");
  checked_size(rstd, "rstd", rows);
  checked_size(dy, "dy", rows * features);
  checked_size(x, "x", rows * features);
  if (dx) checked_size(*dx, "dx", rows * features);
  checked_size(dweight, "dweight", features);
  if (dbias) checked_size(*dbias, "dbias", features);
  const float* dy_data = dy.data();
  const float* x_data = x.data();
  const float* weight_data = weight.data();
  const float* mean_data = mean.data();
  const float* rstd_data = rstd.data();
  float* dx_data = dx ? dx->mutable_data() : nullptr;
  float* dweight_data = dweight.mutable_data();
  float* dbias_data = dbias ? dbias->mutable_data() : nullptr;
  const py::gil_scoped_release unlocked;
  layer_norm_backward(dy_data, x_data, weight_data, mean_data, rstd_data, dx_data, dweight_data, dbias_data, rows,
                      features);
}

void bound_rms_norm(const FloatArray& x, const FloatArray& weight, FloatArray& y, FloatArray& rstd, float epsilon) {
  const std::size_t features = checked_size(weight, "weight");
  const std::size_t rows = checked_size(rstd, "rstd");
  checked_size(x, "x", rows * features);
  checked_size(y, "y", rows * features);
  const float* x_data = x.data();
  const float* weight_data = weight.data();
  float* y_data = y.mutable_data();
  float* rstd_data = rstd.mutable_data();
  const py::gil_scoped_release unlocked;
  rms_norm(x_data, weight_data, y_data, rstd_data, rows, features, epsilon);
}

void bound_rms_norm_backward(const FloatArray& dy, const FloatArray& x, const FloatArray& weight,
                             const FloatArray& rstd, std::optional<FloatArray>& dx, FloatArray& dweight) {
  const std::size_t features = checked_size(weight, "weight");
  const std::size_t rows = checked_size(rstd, "rstd");
  checked_size(dy, "dy", rows * features);
  checked_size(x, "x", rows * features);
  if (dx) checked_size(*dx, "dx", rows * features);
  checked_size(dweight, "dweight", features);
  const float* dy_data = dy.data();
  const float* x_data = x.data();
  const float* weight_data = weight.data();
  const float* rstd_data = rstd.data();
  float* dx_data = dx ? dx->mutable_data() : nullptr;
  float* dweight_data = dweight.mutable_data();
  const py::gil_scoped_release unlocked;
  rms_norm_backward(dy_data, x_data, weight_data, rstd_data, dx_data, dweight_data, rows, features);
}

}  // namespace

void bind_normalisation(py::module_& m) {
  m.def("layer_norm", &bound_layer_norm, py::arg("x").noconvert(), py::arg("weight").noconvert(),
        py::arg("bias").noconvert(), py::arg("y").noconvert(), py::arg("mean").noconvert(), py::arg("rstd").noconvert(),
        py::arg("epsilon"));
  m.def("layer_norm_backward", &bound_layer_norm_backward, py::arg("dy").noconvert(), py::arg("x").noconvert(),
        py::arg("weight").noconvert(), py::arg("mean").noconvert(), py::arg("rstd").noconvert(),
        py::arg("dx").noconvert(), py::arg("dweight").noconvert(), py::arg("dbias").noconvert());
  m.def("rms_norm", &bound_rms_norm, py::arg("x").noconvert(), py::arg("weight").noconvert(), py::arg("y").noconvert(),
        py::arg("rstd").noconvert(), py::arg("epsilon"));
  m.def("rms_norm_backward", &bound_rms_norm_backward, py::arg("dy").noconvert(), py::arg("x").noconvert(),
        py::arg("weight").noconvert(), py::arg("rstd").noconvert(), py::arg("dx").noconvert(),
        py::arg("dweight").noconvert());
}

}  // namespace lepton
