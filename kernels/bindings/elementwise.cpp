#include "lepton/elementwise.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

namespace py = pybind11;

namespace lepton {
namespace {

void bound_gelu(const FloatArray& x, FloatArray& y, std::optional<FloatArray>& slope, bool approximate) {
  const std::size_t n = checked_size(x, "x");
  checked_size(y, "y", n);
  if (slope) checked_size(*slope, "slope", n);
  const float* from = x.data();
  float* to = y.mutable_data();
  float* slope_data = slope ? slope->mutable_data() : nullptr;
  const py::gil_scoped_release unlocked;
  gelu(from, to, slope_data, n, approximate);
}

void bound_silu(const FloatArray& x, FloatArray& y, std::optional<FloatArray>& slope) {
  const std::size_t n = checked_size(x, "x");
  checked_size(y, "y", n);
  if (slope) checked_size(*slope, "slope", n);
  const float* from = x.data();
  float* to = y.mutable_data();
  float* slope_data = slope ? slope->mutable_data() : nullptr;
  const py::gil_scoped_release unlocked;
  silu(from, to, slope_data, n);
}

void bound_swiglu(const FloatArray& gate, const FloatArray& up, FloatArray& y) {
  const std::size_t n = checked_size(gate, "gate");
  checked_size(up, "up", n);
  checked_size(y, "y", n);
  const float* gate_data = gate.data();
  const float* up_data = up.data();
  float* to = y.mutable_data();
  const py::gil_scoped_release unlocked;
  swiglu(gate_data, up_data, to, n);
}

void bound_swiglu_backward(const FloatArray& dy, const FloatArray& gate, const FloatArray& up, FloatArray& dgate,
                           FloatArray& dup, FloatArray& y) {
  const std::size_t n = checked_size(dy, "dy");
  checked_size(gate, "gate", n);
  checked_size(up, "up", n);
  checked_size(dgate, "dgate", n);
  checked_size(dup, "dup", n);
  checked_size(y, "y", n);
  const float* dy_data = dy.data();
  const float* gate_data = gate.data();
  const float* up_data = up.data();
  float* dgate_data = dgate.mutable_data();
  float* dup_data = dup.mutable_data();
  float* y_data = y.mutable_data();
  const py::gil_scoped_release unlocked;
  swiglu_backward(dy_data, gate_data, up_data, dgate_data, dup_data, y_data, n);
}

void bound_rotary(const FloatArray& x, const FloatArray& cosines, const FloatArray& sines, float sign, FloatArray& y,
                  std::size_t batch, std::size_t positions, std::size_t heads) {
  const std::size_t n = checked_size(cosines, "cosines");
  checked_size(sines, "sines", n);
  const std::size_t half = positions > 0 ? n / positions : 0;
  checked_size(cosines, "cosines", positions * half);
  checked_size(x, "x", batch * heads * 2 * n);
  checked_size(y, "y", batch * heads * 2 * n);
  const float* x_data = x.data();
  const float* cosines_data = cosines.data();
  const float* sines_data = sines.data();
  float* to = y.mutable_data();
  const py::gil_scoped_release unlocked;
  rotary(x_data, cosines_data, sines_data, sign, to, batch, positions, heads, half);
}

}  // namespace

void bind_elementwise(py::module_& m) {
  m.def("gelu", &bound_gelu, py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("slope").noconvert(),
        py::arg("approximate"));
  m.def("silu", &bound_silu, py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("slope").noconvert());
  m.def("swiglu", &bound_swiglu, py::arg("gate").noconvert(), py::arg("up").noconvert(), py::arg("y").noconvert());
  m.def("swiglu_backward", &bound_swiglu_backward, py::arg("dy").noconvert(), py::arg("gate").noconvert(),
        py::arg("up").noconvert(), py::arg("dgate").noconvert(), py::arg("dup").noconvert(), py::arg("y").noconvert());
  m.def("rotary", &bound_rotary, py::arg("x").noconvert(), py::arg("cosines").noconvert(), py::arg("sines").noconvert(),
        py::arg("sign"), py::arg("y").noconvert(), py::arg("batch"), py::arg("positions"), py::arg("heads"));
}

}  // namespace lepton
