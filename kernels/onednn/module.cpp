// The extension module lepton_mpi._onednn; import it through lepton_mpi.native.
#include "lepton/onednn_product.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace lepton {
namespace {

MatrixBatch matrices(const py::array_t<float, 0>& x, const char* name) {
  constexpr auto kItem = static_cast<py::ssize_t>(sizeof(float));
  const auto stride = [&](py::ssize_t dim) { return static_cast<std::int64_t>(x.strides(dim) / kItem); };
  if (x.ndim() != 3 || x.size() == 0) {
    throw std::invalid_argument(std::string(name) + ": expected [batch, rows, columns], none of them 0");
  }
  for (py::ssize_t dim = 0; dim < 3; ++dim) {
    if (x.strides(dim) % kItem != 0 || x.strides(dim) < 0) {
      throw std::invalid_argument(std::string(name) + ": expected strides of whole elements, none negative");
    }
  }
  if (stride(2) != 1 && stride(1) != 1) {
    throw std::invalid_argument(std::string(name) + ": expected rows or columns that are contiguous");
  }
  return {x.data(), x.shape(0), x.shape(1), x.shape(2), stride(0), stride(1), stride(2)};
}

void bound_bf16_product(const py::array_t<float, 0>& a, const py::array_t<float, 0>& b,
                        py::array_t<float, py::array::c_style>& y) {
  const MatrixBatch left = matrices(a, "a");
  const MatrixBatch right = matrices(b, "b");
  const std::int64_t batch = left.batch == 1 ? right.batch : left.batch;
  if (left.columns != right.rows || (right.batch != 1 && right.batch != batch)) {
    throw std::invalid_argument("a and b: expected matrices that can be multiplied");
  }
  if (y.ndim() != 3 || y.shape(0) != batch || y.shape(1) != left.rows || y.shape(2) != right.columns) {
    throw std::invalid_argument("y: expected the shape of the product");
  }
  float* out = y.mutable_data();
  const py::gil_scoped_release unlocked;
  bf16_product(left, right, out);
}

}  // namespace
}  // namespace lepton

PYBIND11_MODULE(_onednn, m) {
  m.doc() = "Products on the CPU's bfloat16 units; import them through lepton_mpi.native.";
  m.attr("__version__") = LEPTON_VERSION;
  m.def("has_bf16_unit", &lepton::has_bf16_unit);
  m.def("bf16_product", &lepton::bound_bf16_product, py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("y").noconvert());
}
