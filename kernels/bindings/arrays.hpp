// Array arguments of the bindings: NumPy buffers taken as they are, never converted or copied.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace lepton {

// Bind them with py::arg(...).noconvert(); other dtypes and strides are then a TypeError.
using FloatArray = pybind11::array_t<float, pybind11::array::c_style>;
using ByteArray = pybind11::array_t<std::uint8_t, pybind11::array::c_style>;

// Size of a one-dimensional, aligned array.
template <class Array>
std::size_t checked_size(const Array& array, const char* name) {
  if (array.ndim() != 1) {
    throw std::invalid_argument(std::string(name) + ": expected 1 dim, received " + std::to_string(array.ndim()));
  }
  if ((array.flags() & pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
    throw std::invalid_argument(std::string(name) + ": expected an aligned array");
  }
  return static_cast<std::size_t>(array.size());
}

// As checked_size, for an array that must have `expected` values.
template <class Array>
std::size_t checked_size(const Array& array, const char* name, std::size_t expected) {
  const std::size_t received = checked_size(array, name);
  if (received != expected) {
    throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(expected) + " values, received " +
                                std::to_string(received));
  }
  return received;
}

}  // namespace lepton
