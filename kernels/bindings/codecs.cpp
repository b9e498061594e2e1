#include "lepton/codec.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace lepton {
namespace {

void check_payload(Codec codec, const ByteArray& payload, std::size_t n) {
  const std::size_t expected = encoded_nbytes(codec, n);
  const auto received = static_cast<std::size_t>(payload.size());
  if (received != expected) {
    throw std::invalid_argument("payload of " + std::to_string(n) + " values: expected " + std::to_string(expected) +
                                " bytes, received " + std::to_string(received));
  }
}

void codec_encode(int codec_number, const FloatArray& x, ByteArray& out) {
  const auto codec = static_cast<Codec>(codec_number);
  const std::size_t n = checked_size(x, "x");
  checked_size(out, "out");
  check_payload(codec, out, n);
  const float* from = x.data();
  auto* to = reinterpret_cast<std::byte*>(out.mutable_data());
  const py::gil_scoped_release unlocked;
  encode(codec, from, n, to);
}

void codec_encode_with_feedback(int codec_number, const std::optional<FloatArray>& g, FloatArray& residual,
                                ByteArray& out) {
  const auto codec = static_cast<Codec>(codec_number);
  const std::size_t n = checked_size(residual, "residual");
  if (g) checked_size(*g, "g", n);
  checked_size(out, "out");
  check_payload(codec, out, n);
  const float* from = g ? g->data() : nullptr;
  float* rest = residual.mutable_data();
  if (n > 0 && from == rest) throw std::invalid_argument("g and residual must not be one array");
  auto* to = reinterpret_cast<std::byte*>(out.mutable_data());
  const py::gil_scoped_release unlocked;
  encode_with_feedback(codec, from, rest, n, to);
}

void codec_encode_stochastic(int codec_number, const FloatArray& x, ByteArray& out, std::uint64_t seed,
                             std::uint32_t step, std::uint32_t rank, std::uint32_t phase, std::uint64_t first_element) {
  const auto codec = static_cast<Codec>(codec_number);
  const std::size_t n = checked_size(x, "x");
  checked_size(out, "out");
  check_payload(codec, out, n);
  const float* from = x.data();
  auto* to = reinterpret_cast<std::byte*>(out.mutable_data());
  const py::gil_scoped_release unlocked;
  encode_stochastic(codec, from, n, to, {seed, step, rank, phase}, first_element);
}

void codec_decode(int codec_number, const ByteArray& payload, FloatArray& out, bool add) {
  const auto codec = static_cast<Codec>(codec_number);
  const std::size_t n = checked_size(out, "out");
  checked_size(payload, "payload");
  check_payload(codec, payload, n);
  const auto* from = reinterpret_cast<const std::byte*>(payload.data());
  float* to = out.mutable_data();
  const py::gil_scoped_release unlocked;
  if (add) {
    decode_add(codec, from, n, to);
  } else {
    decode(codec, from, n, to);
  }
}

}  // namespace

void bind_codecs(py::module_& m) {
  m.def("codec_block_values", [](int codec) { return block_values(static_cast<Codec>(codec)); }, py::arg("codec"));
  m.def(
      "codec_encoded_nbytes", [](int codec, std::size_t n) { return encoded_nbytes(static_cast<Codec>(codec), n); },
      py::arg("codec"), py::arg("n"));
  m.def("codec_encode", &codec_encode, py::arg("codec"), py::arg("x").noconvert(), py::arg("out").noconvert());
  m.def("codec_has_stochastic", [](int codec) { return has_stochastic(static_cast<Codec>(codec)); }, py::arg("codec"));
  m.def("codec_encode_with_feedback", &codec_encode_with_feedback, py::arg("codec"), py::arg("g").noconvert(),
        py::arg("residual").noconvert(), py::arg("out").noconvert());
  m.def("codec_encode_stochastic", &codec_encode_stochastic, py::arg("codec"), py::arg("x").noconvert(),
        py::arg("out").noconvert(), py::kw_only(), py::arg("seed"), py::arg("step"), py::arg("rank"), py::arg("phase"),
        py::arg("first_element"));
  m.def("codec_decode", &codec_decode, py::arg("codec"), py::arg("payload").noconvert(), py::arg("out").noconvert(),
        py::arg("add"));
}

}  // namespace lepton
