#include "lepton/topk.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace py = pybind11;

namespace lepton {
namespace {

using Sent = std::pair<std::size_t, std::size_t>;  // bytes and values

std::byte* checked_room(ByteArray& out, std::size_t n) {
  const std::size_t received = checked_size(out, "out");
  if (received < topk_max_nbytes(n)) {
    throw std::invalid_argument("out: expected at least " + std::to_string(topk_max_nbytes(n)) + " bytes, received " +
                                std::to_string(received));
  }
  return reinterpret_cast<std::byte*>(out.mutable_data());
}

Sent encode(const FloatArray& x, float threshold, ByteArray& out) {
  const std::size_t n = checked_size(x, "x");
  std::byte* to = checked_room(out, n);
  const float* from = x.data();
  const py::gil_scoped_release unlocked;
  const TopkResult result = topk_encode(from, n, threshold, to);
  return {result.nbytes, result.num_values};
}

Sent encode_with_feedback(const std::optional<FloatArray>& g, FloatArray& residual, float threshold, ByteArray& out) {
  const std::size_t n = checked_size(residual, "residual");
  if (g) checked_size(*g, "g", n);
  std::byte* to = checked_room(out, n);
  const float* from = g ? g->data() : nullptr;
  float* rest = residual.mutable_data();
  const py::gil_scoped_release unlocked;
  const TopkResult result = topk_encode_with_feedback(from, rest, n, threshold, to);
  return {result.nbytes, result.num_values};
}

void decode(const ByteArray& payload, FloatArray& out, bool add) {
  const std::size_t nbytes = checked_size(payload, "payload");
  const std::size_t n = checked_size(out, "out");
  const auto* from = reinterpret_cast<const std::byte*>(payload.data());
  float* to = out.mutable_data();
  const py::gil_scoped_release unlocked;
  if (add) {
    topk_decode_add(from, nbytes, n, to);
  } else {
    topk_decode(from, nbytes, n, to);
  }
}

float threshold(const FloatArray& x, double share) {
  const std::size_t n = checked_size(x, "x");
  const float* from = x.data();
  const py::gil_scoped_release unlocked;
  return topk_threshold(from, n, share);
}

float sampled_threshold(const FloatArray& x, const std::optional<FloatArray>& residual, double share) {
  const std::size_t n = checked_size(x, "x");
  if (residual) checked_size(*residual, "residual", n);
  const float* from = x.data();
  const float* rest = residual ? residual->data() : nullptr;
  const py::gil_scoped_release unlocked;
  return topk_sampled_threshold(from, rest, n, share);
}

}  // namespace

void bind_topk(py::module_& m) {
  m.def("topk_max_nbytes", &topk_max_nbytes, py::arg("n"));
  m.def("topk_threshold", &threshold, py::arg("x").noconvert(), py::arg("share"));
  m.def("topk_sampled_threshold", &sampled_threshold, py::arg("x").noconvert(), py::arg("residual").noconvert(),
        py::arg("share"));
  m.def("topk_encode", &encode, py::arg("x").noconvert(), py::arg("threshold"), py::arg("out").noconvert());
  m.def("topk_encode_with_feedback", &encode_with_feedback, py::arg("g").noconvert(), py::arg("residual").noconvert(),
        py::arg("threshold"), py::arg("out").noconvert());
  m.def("topk_decode", &decode, py::arg("payload").noconvert(), py::arg("out").noconvert(), py::arg("add"));
}

}  // namespace lepton
