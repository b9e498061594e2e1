#include "lepton/images.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace lepton {
namespace {

using PlaceArray = py::array_t<std::int32_t, py::array::c_style>;
using Bounds = std::array<std::int64_t, 2>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// The windows over x [B, H, W, C], with the sizes checked.
Windows windows_of(const FloatArray& x, Pair kernel, Pair stride, Pair padding, Pair dilation) {
  require(x.ndim() == 4, "images: expected 4 dims [B, H, W, C]");
  for (const int dim : {0, 1}) {
    require(kernel[dim] > 0 && stride[dim] > 0 && dilation[dim] > 0, "kernel, stride and dilation must be positive");
    require(padding[dim] >= 0, "padding must not be negative");
  }
  const Windows windows{x.shape(0), x.shape(1), x.shape(2), x.shape(3), kernel, stride, padding, dilation};
  require(windows.count(0) > 0 && windows.count(1) > 0, "the image is smaller than a window");
  return windows;
}

WindowRange checked_range(const Windows& windows, Bounds images, Bounds rows, Bounds channels, std::int64_t size) {
  const auto within = [](Bounds bounds, std::int64_t length) {
    return 0 <= bounds[0] && bounds[0] <= bounds[1] && bounds[1] <= length;
  };
  require(within(images, windows.num_images) && within(rows, windows.count(0)) && within(channels, windows.channels),
          "images, rows or channels are outside of the array");
  const std::int64_t expected = (images[1] - images[0]) * (rows[1] - rows[0]) * windows.count(1) * windows.kernel[0] *
                                windows.kernel[1] * (channels[1] - channels[0]);
  if (size != expected) {
    throw std::invalid_argument("columns: expected " + std::to_string(expected) + " values, received " +
                                std::to_string(size));
  }
  return {images[0], images[1], rows[0], rows[1], channels[0], channels[1]};
}

void bound_im2col(const FloatArray& x, FloatArray& columns, Bounds images, Bounds rows, Bounds channels, Pair kernel,
                  Pair stride, Pair padding, Pair dilation) {
  const Windows windows = windows_of(x, kernel, stride, padding, dilation);
  const WindowRange range = checked_range(windows, images, rows, channels, columns.size());
  const float* from = x.data();
  float* to = columns.mutable_data();
  const py::gil_scoped_release unlocked;
  im2col(from, windows, range, to);
}

void bound_col2im_add(const FloatArray& columns, FloatArray& dx, Bounds images, Bounds rows, Bounds channels,
                      Pair kernel, Pair stride, Pair padding, Pair dilation) {
  const Windows windows = windows_of(dx, kernel, stride, padding, dilation);
  const WindowRange range = checked_range(windows, images, rows, channels, columns.size());
  const float* from = columns.data();
  float* to = dx.mutable_data();
  const py::gil_scoped_release unlocked;
  col2im_add(from, windows, range, to);
}

void bound_max_pool2d(const FloatArray& x, FloatArray& y, PlaceArray& places, Pair kernel, Pair stride, Pair padding) {
  const Windows windows = windows_of(x, kernel, stride, padding, {1, 1});
  for (const int dim : {0, 1}) require(2 * padding[dim] <= kernel[dim], "padding must be at most half of the kernel");
  require(windows.height * windows.width <= std::numeric_limits<std::int32_t>::max(), "the image has too many pixels");
  const std::int64_t size = windows.num_images * windows.count(0) * windows.count(1) * windows.channels;
  require(y.size() == size && places.size() == size, "y and places must have one value for each window and channel");
  const float* from = x.data();
  float* to = y.mutable_data();
  std::int32_t* at = places.mutable_data();
  const py::gil_scoped_release unlocked;
  max_pool2d(from, windows, to, at);
}

void bound_max_pool2d_backward_add(const FloatArray& dy, const PlaceArray& places, FloatArray& dx) {
  require(dy.ndim() == 4 && dx.ndim() == 4 && dy.shape(0) == dx.shape(0) && dy.shape(3) == dx.shape(3),
          "dy and dx: expected 4 dims [B, H, W, C] with equal B and C");
  require(places.size() == dy.size(), "dy and places must be of one size");
  const std::int64_t num_images = dx.shape(0), num_windows = dy.shape(1) * dy.shape(2);
  const std::int64_t num_pixels = dx.shape(1) * dx.shape(2), channels = dx.shape(3);
  const float* from = dy.data();
  const std::int32_t* at = places.data();
  float* to = dx.mutable_data();
  bool is_inside = false;
  {
    const py::gil_scoped_release unlocked;
    is_inside = max_pool2d_backward_add(from, at, num_images, num_windows, num_pixels, channels, to);
  }
  require(is_inside, "places: one is outside of the image");
}

// Which of the three arrays of a depthwise convolution a call writes to.
enum class Writes { kOutput, kInput, kWeight };

// All three have the windows over x, the output y and the weight [taps, C] in common.
template <Writes writes>
void bound_depthwise(FloatArray& x, FloatArray& weight, FloatArray& y, Pair kernel, Pair stride, Pair padding,
                     Pair dilation) {
  const Windows windows = windows_of(x, kernel, stride, padding, dilation);
  require(weight.size() == kernel[0] * kernel[1] * windows.channels,
          "weight must have one value for each tap and channel");
  require(y.size() == windows.num_images * windows.count(0) * windows.count(1) * windows.channels,
          "y must have one value for each window and channel");
  float* written = (writes == Writes::kOutput ? y : writes == Writes::kInput ? x : weight).mutable_data();
  const float* x_data = x.data();
  const float* weight_data = weight.data();
  const float* y_data = y.data();
  const py::gil_scoped_release unlocked;
  if constexpr (writes == Writes::kOutput) {
    depthwise_conv2d(x_data, weight_data, windows, written);
  } else if constexpr (writes == Writes::kInput) {
    depthwise_backward_input_add(y_data, weight_data, windows, written);
  } else {
    depthwise_backward_weight_add(y_data, x_data, windows, written);
  }
}

}  // namespace

void bind_images(py::module_& m) {
  m.def("im2col", &bound_im2col, py::arg("x").noconvert(), py::arg("columns").noconvert(), py::arg("images"),
        py::arg("rows"), py::arg("channels"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"));
  m.def("col2im_add", &bound_col2im_add, py::arg("columns").noconvert(), py::arg("dx").noconvert(), py::arg("images"),
        py::arg("rows"), py::arg("channels"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"));
  m.def("max_pool2d", &bound_max_pool2d, py::arg("x").noconvert(), py::arg("y").noconvert(),
        py::arg("places").noconvert(), py::arg("kernel"), py::arg("stride"), py::arg("padding"));
  m.def("max_pool2d_backward_add", &bound_max_pool2d_backward_add, py::arg("dy").noconvert(),
        py::arg("places").noconvert(), py::arg("dx").noconvert());
  m.def("depthwise_conv2d", &bound_depthwise<Writes::kOutput>, py::arg("x").noconvert(), py::arg("weight").noconvert(),
        py::arg("y").noconvert(), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"));
  m.def("depthwise_backward_input_add", &bound_depthwise<Writes::kInput>, py::arg("dx").noconvert(),
        py::arg("weight").noconvert(), py::arg("dy").noconvert(), py::arg("kernel"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"));
  m.def("depthwise_backward_weight_add", &bound_depthwise<Writes::kWeight>, py::arg("x").noconvert(),
        py::arg("dweight").noconvert(), py::arg("dy").noconvert(), py::arg("kernel"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"));
}

}  // namespace lepton
