#include "lepton/dropout.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace lepton {
namespace {

DropoutRows place(std::uint64_t key, std::uint64_t step, std::uint64_t first_row, std::uint64_t row_size,
                  std::uint64_t row_start, std::size_t rows, std::size_t size, std::uint32_t threshold) {
  const std::size_t n = rows > 0 ? size / rows : 0;
  if (rows * n != size || row_start + n > row_size) {
    throw std::invalid_argument("mask: expected rows of at most " + std::to_string(row_size) + " elements, received " +
                                std::to_string(size) + " elements in " + std::to_string(rows) + " rows from element " +
                                std::to_string(row_start));
  }
  return {key, step, first_row, row_size, row_start, rows, n, threshold};
}

void bound_dropout_mask(ByteArray& mask, std::size_t rows, std::uint64_t key, std::uint64_t step,
                        std::uint64_t first_row, std::uint64_t row_size, std::uint64_t row_start,
                        std::uint32_t threshold) {
  const std::size_t size = checked_size(mask, "mask");
  const DropoutRows at = place(key, step, first_row, row_size, row_start, rows, size, threshold);
  std::uint8_t* mask_data = mask.mutable_data();
  const py::gil_scoped_release unlocked;
  dropout_mask(at, mask_data);
}

void bound_dropout(const FloatArray& x, FloatArray& y, ByteArray& mask, float scale, std::size_t rows,
                   std::uint64_t key, std::uint64_t step, std::uint64_t first_row, std::uint64_t row_size,
                   std::uint64_t row_start, std::uint32_t threshold) {
  const std::size_t size = checked_size(mask, "mask");
  checked_size(x, "x", size);
  checked_size(y, "y", size);
  const DropoutRows at = place(key, step, first_row, row_size, row_start, rows, size, threshold);
  const float* x_data = x.data();
  float* y_data = y.mutable_data();
  std::uint8_t* mask_data = mask.mutable_data();
  const py::gil_scoped_release unlocked;
  dropout(at, x_data, scale, y_data, mask_data);
}

void bound_apply_mask(const FloatArray& x, const ByteArray& mask, float scale, FloatArray& y) {
  const std::size_t n = checked_size(x, "x");
  checked_size(mask, "mask", n);
  checked_size(y, "y", n);
  const float* x_data = x.data();
  const std::uint8_t* mask_data = mask.data();
  float* y_data = y.mutable_data();
  const py::gil_scoped_release unlocked;
  apply_mask(x_data, mask_data, scale, y_data, n);
}

}  // namespace

void bind_dropout(py::module_& m) {
  m.def("dropout_mask", &bound_dropout_mask, py::arg("mask").noconvert(), py::arg("rows"), py::arg("key"),
        py::arg("step"), py::arg("first_row"), py::arg("row_size"), py::arg("row_start"), py::arg("threshold"));
  m.def("dropout", &bound_dropout, py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("mask").noconvert(),
        py::arg("scale"), py::arg("rows"), py::arg("key"), py::arg("step"), py::arg("first_row"), py::arg("row_size"),
        py::arg("row_start"), py::arg("threshold"));
  m.def("apply_mask", &bound_apply_mask, py::arg("x").noconvert(), py::arg("mask").noconvert(), py::arg("scale"),
        py::arg("y").noconvert());
}

}  // namespace lepton
