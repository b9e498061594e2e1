#include "lepton/update.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

namespace py = pybind11;

namespace lepton {
namespace {

void bound_sgd_update(FloatArray& values, const FloatArray& grads, std::optional<FloatArray>& momentum_buffer,
                      double lr, double momentum, double weight_decay, double grad_scale) {
  const std::size_t n = checked_size(values, "values");
  checked_size(grads, "grads", n);
  if (momentum_buffer) checked_size(*momentum_buffer, "momentum_buffer", n);
  float* values_data = values.mutable_data();
  float* momentum_data = momentum_buffer ? momentum_buffer->mutable_data() : nullptr;
  const float* grads_data = grads.data();
  const py::gil_scoped_release unlocked;
  sgd_update(values_data, grads_data, momentum_data, n, lr, momentum, weight_decay, grad_scale);
}

void bound_adamw_update(FloatArray& values, const FloatArray& grads, FloatArray& m, FloatArray& v, double lr,
                        double beta1, double beta2, double epsilon, double weight_decay, double grad_scale,
                        std::int64_t step) {
  const std::size_t n = checked_size(values, "values");
  checked_size(grads, "grads", n);
  checked_size(m, "m", n);
  checked_size(v, "v", n);
  float* values_data = values.mutable_data();
  float* m_data = m.mutable_data();
  float* v_data = v.mutable_data();
  const float* grads_data = grads.data();
  const py::gil_scoped_release unlocked;
  adamw_update(values_data, grads_data, m_data, v_data, n, lr, beta1, beta2, epsilon, weight_decay, grad_scale, step);
}

double bound_sum_of_squares(const FloatArray& x) {
  const std::size_t n = checked_size(x, "x");
  const float* data = x.data();
  const py::gil_scoped_release unlocked;
  return sum_of_squares(data, n);
}

}  // namespace

void bind_updates(py::module_& m) {
  m.def("sgd_update", &bound_sgd_update, py::arg("values").noconvert(), py::arg("grads").noconvert(),
        py::arg("momentum_buffer").noconvert(), py::arg("lr"), py::arg("momentum"), py::arg("weight_decay"),
        py::arg("grad_scale"));
  m.def("adamw_update", &bound_adamw_update, py::arg("values").noconvert(), py::arg("grads").noconvert(),
        py::arg("m").noconvert(), py::arg("v").noconvert(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
        py::arg("epsilon"), py::arg("weight_decay"), py::arg("grad_scale"), py::arg("step"));
  m.def("sum_of_squares", &bound_sum_of_squares, py::arg("x").noconvert());
}

}  // namespace lepton
