#include "lepton/bf16_rounding.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace lepton {

void bind_bf16_rounding(py::module_& m) {
  m.def(
      "round_to_bf16",
      [](const FloatArray& x, FloatArray& out) {
        const std::size_t n = checked_size(x, "x");
        checked_size(out, "out", n);
        const float* from = x.data();
        float* to = out.mutable_data();
        const py::gil_scoped_release unlocked;
        round_to_bf16(from, n, to);
      },
      py::arg("x").noconvert(), py::arg("out").noconvert());
}

}  // namespace lepton
