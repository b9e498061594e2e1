#include "lepton/exchange.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

namespace py = pybind11;

namespace lepton {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

// The engine holds raw pointers, so this keeps the arrays they point into.
struct ExchangeHandle {
  std::vector<FloatArray> grads;
  ByteArray signals;
  std::optional<FloatArray> residual;
  std::unique_ptr<Exchange> exchange;
};

std::unique_ptr<ExchangeHandle> make_exchange(std::vector<FloatArray> grads, ByteArray signals, int rank,
                                              int num_owners, std::optional<int> peers, int codec,
                                              std::vector<std::int64_t> bounds, double timeout_s, double spin_s,
                                              bool own_pieces, std::optional<FloatArray> residual,
                                              std::int64_t exact_until, bool background) {
  if (grads.empty() || bounds.empty()) throw py::value_error("grads and bounds must not be empty");
  std::vector<float*> pointers;
  for (FloatArray& grad : grads) {
    if (grad.size() < bounds.back())
      throw py::value_error("every gradient buffer must hold " + std::to_string(bounds.back()) + " values, received " +
                            std::to_string(grad.size()));
    pointers.push_back(grad.mutable_data());
  }
  if (rank < 0 || rank >= static_cast<int>(grads.size())) throw py::value_error("rank is outside the node's group");
  ExchangeOptions options;
  options.rank = rank;
  options.num_owners = num_owners;
  options.codec = static_cast<Codec>(codec);
  options.timeout_s = timeout_s;
  options.spin_s = spin_s;
  options.own_pieces = own_pieces;
  options.exact_until = exact_until;
  options.background = background;
  if (residual) {
    if (residual->size() < bounds.back())
      throw py::value_error("residual must hold " + std::to_string(bounds.back()) + " values, received " +
                            std::to_string(residual->size()));
    options.residual = residual->mutable_data();
  }
  auto handle = std::make_unique<ExchangeHandle>();
  auto* const memory = reinterpret_cast<std::byte*>(signals.mutable_data());
  const auto memory_nbytes = static_cast<std::size_t>(signals.size());
  const MPI_Comm comm = peers ? MPI_Comm_f2c(static_cast<MPI_Fint>(*peers)) : MPI_COMM_NULL;
  handle->exchange =
      std::make_unique<Exchange>(std::move(pointers), memory, memory_nbytes, comm, std::move(bounds), options);
  handle->grads = std::move(grads);
  handle->signals = std::move(signals);
  handle->residual = std::move(residual);
  return handle;
}

}  // namespace

void bind_exchange(py::module_& m) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const StallError& error) {
      py::object type = py::module_::import("lepton_mpi.errors").attr("StallError");
      PyErr_SetString(type.ptr(), error.what());
    }
  });
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<ExchangeHandle>(m, "Exchange")
      .def(py::init(&make_exchange), py::kw_only(), py::arg("grads"), py::arg("signals"), py::arg("rank"),
           py::arg("num_owners"), py::arg("peers"), py::arg("codec"), py::arg("bounds"), py::arg("timeout_s"),
           py::arg("spin_s"), py::arg("own_pieces") = false, py::arg("residual") = py::none(),
           py::arg("exact_until") = 0, py::arg("background") = false)
      .def_static("signal_nbytes", &Exchange::signal_nbytes, py::arg("num_ranks"), py::arg("num_buckets"))
      .def(
          "start", [](ExchangeHandle& h, int bucket) { h.exchange->start(bucket); }, py::arg("bucket"), unlocked)
      .def(
          "progress", [](ExchangeHandle& h) { return h.exchange->progress(); }, unlocked)
      .def(
          "finish", [](ExchangeHandle& h) { h.exchange->finish(); }, unlocked)
      .def(
          "publish", [](ExchangeHandle& h) { h.exchange->publish(); }, unlocked)
      .def(
          "set_codec", [](ExchangeHandle& h, int codec) { h.exchange->set_codec(static_cast<Codec>(codec)); },
          py::arg("codec"))
      .def(
          "done", [](ExchangeHandle& h, int bucket) { return h.exchange->done(bucket); }, py::arg("bucket"), unlocked)
      .def(
          "set_in_node_from", [](ExchangeHandle& h, std::int64_t first) { h.exchange->set_in_node_from(first); },
          py::arg("first"))
      .def(
          "set_share", [](ExchangeHandle& h, double share) { h.exchange->set_share(share); }, py::arg("share"))
      .def(
          "owned",
          [](const ExchangeHandle& h, int bucket) {
            if (bucket < 0 || bucket >= h.exchange->num_buckets()) throw py::index_error("no such bucket");
            const Extent extent = h.exchange->owned(bucket);
            return py::make_tuple(extent.lo, extent.hi);
          },
          py::arg("bucket"))
      .def_property_readonly("num_buckets", [](const ExchangeHandle& h) { return h.exchange->num_buckets(); })
      .def_property_readonly("stats", [](ExchangeHandle& h) {
        const ExchangeStats stats = h.exchange->stats();
        py::dict result;
        result["sent_nbytes"] = stats.sent_nbytes;
        result["reduced_values"] = stats.reduced_values;
        result["wait_s"] = stats.wait_s;
        return result;
      });
}

}  // namespace lepton
