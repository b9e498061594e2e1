#include "lepton/cross_entropy.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

namespace py = pybind11;

namespace lepton {
namespace {

using LabelArray = py::array_t<std::int64_t, py::array::c_style>;

std::tuple<double, double, std::int64_t, std::int64_t> bound_softmax_cross_entropy(
    const FloatArray& logits, const LabelArray& labels, std::size_t num_classes,
    const std::optional<FloatArray>& class_weights, double label_smoothing, double factor,
    std::optional<FloatArray>& dlogits) {
  const std::size_t num_rows = checked_size(labels, "labels");
  checked_size(logits, "logits", num_rows * num_classes);
  if (class_weights) checked_size(*class_weights, "class_weights", num_classes);
  if (dlogits) checked_size(*dlogits, "dlogits", num_rows * num_classes);
  const float* weights_data = class_weights ? class_weights->data() : nullptr;
  float* dlogits_data = dlogits ? dlogits->mutable_data() : nullptr;
  const float* logits_data = logits.data();
  const std::int64_t* labels_data = labels.data();
  CrossEntropySums sums;
  {
    const py::gil_scoped_release unlocked;
    sums = softmax_cross_entropy(logits_data, labels_data, num_rows, num_classes, weights_data, label_smoothing, factor,
                                 dlogits_data);
  }
  return {sums.loss, sums.weight, sums.num_correct, sums.num_counted};
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  m.def("softmax_cross_entropy", &bound_softmax_cross_entropy, py::arg("logits").noconvert(),
        py::arg("labels").noconvert(), py::arg("num_classes"), py::arg("class_weights").noconvert(),
        py::arg("label_smoothing"), py::arg("factor"), py::arg("dlogits").noconvert());
}

}  // namespace lepton
