#include "lepton/softmax.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

namespace py = pybind11;

namespace lepton {
namespace {

using BoolArray = py::array_t<bool, py::array::c_style>;

ScoreShape score_shape(const FloatArray& scores, std::optional<std::ptrdiff_t> first_query) {
  if (scores.ndim() != 4) {
    throw std::invalid_argument("scores: expected 4 dims, received " + std::to_string(scores.ndim()));
  }
  if (first_query && *first_query < 0) {
    throw std::invalid_argument("first_query: expected 0 or more, received " + std::to_string(*first_query));
  }
  const auto size = [&](py::ssize_t dim) { return static_cast<std::size_t>(scores.shape(dim)); };
  return {size(0), size(1), size(2), size(3), first_query.value_or(not_causal)};
}

void bound_softmax(FloatArray& scores, const std::optional<BoolArray>& key_mask,
                   std::optional<std::ptrdiff_t> first_query, float scale) {
  const ScoreShape shape = score_shape(scores, first_query);
  if (key_mask &&
      (key_mask->ndim() != 2 || key_mask->shape(0) != scores.shape(0) || key_mask->shape(1) != scores.shape(3))) {
    throw std::invalid_argument("key_mask: expected one value for each sample and key of the scores");
  }
  const bool* mask = key_mask ? key_mask->data() : nullptr;
  float* data = scores.mutable_data();
  const py::gil_scoped_release unlocked;
  softmax(data, mask, shape, scale);
}

void bound_softmax_backward(FloatArray& dp, const FloatArray& p, std::optional<std::ptrdiff_t> first_query,
                            float scale) {
  const ScoreShape shape = score_shape(dp, first_query);
  if (p.ndim() != 4 || !std::equal(p.shape(), p.shape() + 4, dp.shape())) {
    throw std::invalid_argument("p: expected the shape of dp");
  }
  float* data = dp.mutable_data();
  const float* p_data = p.data();
  const py::gil_scoped_release unlocked;
  softmax_backward(data, p_data, shape, scale);
}

}  // namespace

void bind_softmax(py::module_& m) {
  m.def("softmax", &bound_softmax, py::arg("scores").noconvert(), py::arg("key_mask").noconvert(),
        py::arg("first_query"), py::arg("scale"));
  m.def("softmax_backward", &bound_softmax_backward, py::arg("dp").noconvert(), py::arg("p").noconvert(),
        py::arg("first_query"), py::arg("scale"));
}

}  // namespace lepton
