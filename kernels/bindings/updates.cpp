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

void bound_lamb_direction(const FloatArray& values, FloatArray& grads, FloatArray& m, FloatArray& v, double beta1,
                          double beta2, double epsilon, double weight_decay, double grad_scale, std::int64_t step) {
  const std::size_t n = checked_size(values, "values");
  checked_size(grads, "grads", n);
  checked_size(m, "m", n);
  checked_size(v, "v", n);
  const float* values_data = values.data();
  float* grads_data = grads.mutable_data();
  float* m_data = m.mutable_data();
  float* v_data = v.mutable_data();
  const py::gil_scoped_release unlocked;
  lamb_direction(values_data, grads_data, m_data, v_data, n, beta1, beta2, epsilon, weight_decay, grad_scale, step);
}

void bound_momentum_share(FloatArray& grads, const FloatArray& m, double beta1, int num_ranks) {
  const std::size_t n = checked_size(grads, "grads");
  checked_size(m, "m", n);
  float* grads_data = grads.mutable_data();
  const float* m_data = m.data();
  const py::gil_scoped_release unlocked;
  momentum_share(grads_data, m_data, n, beta1, num_ranks);
}

void bound_frozen_adam_update(FloatArray& values, const FloatArray& sums, FloatArray& m, const FloatArray& v, double lr,
                              double beta1, double beta2, double epsilon, double weight_decay, double grad_scale,
                              std::int64_t step, std::int64_t frozen_step) {
  const std::size_t n = checked_size(values, "values");
  checked_size(sums, "sums", n);
  checked_size(m, "m", n);
  checked_size(v, "v", n);
  float* values_data = values.mutable_data();
  const float* sums_data = sums.data();
  float* m_data = m.mutable_data();
  const float* v_data = v.data();
  const py::gil_scoped_release unlocked;
  frozen_adam_update(values_data, sums_data, m_data, v_data, n, lr, beta1, beta2, epsilon, weight_decay, grad_scale,
                     step, frozen_step);
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
  m.def("lamb_direction", &bound_lamb_direction, py::arg("values").noconvert(), py::arg("grads").noconvert(),
        py::arg("m").noconvert(), py::arg("v").noconvert(), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"),
        py::arg("weight_decay"), py::arg("grad_scale"), py::arg("step"));
  m.def("momentum_share", &bound_momentum_share, py::arg("grads").noconvert(), py::arg("m").noconvert(),
        py::arg("beta1"), py::arg("num_ranks"));
  m.def("frozen_adam_update", &bound_frozen_adam_update, py::arg("values").noconvert(), py::arg("sums").noconvert(),
        py::arg("m").noconvert(), py::arg("v").noconvert(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
        py::arg("epsilon"), py::arg("weight_decay"), py::arg("grad_scale"), py::arg("step"), py::arg("frozen_step"));
  m.def("sum_of_squares", &bound_sum_of_squares, py::arg("x").noconvert());
}

}  // namespace lepton
