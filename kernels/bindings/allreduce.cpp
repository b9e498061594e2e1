#include "lepton/allreduce.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <optional>

namespace py = pybind11;

namespace lepton {
namespace {

// The engine holds raw pointers, so this keeps the arrays they point into until they are finished.
struct AllReduceHandle {
  ByteArray signals;
  FloatArray staging;
  std::map<std::uint64_t, py::tuple> in_use;
  std::unique_ptr<AllReduce> engine;

  ~AllReduceHandle() {
    const py::gil_scoped_release unlocked;
    engine.reset();
  }

  void release(std::uint64_t number) { in_use.erase(in_use.begin(), in_use.upper_bound(number)); }
};

AllReduceOptions make_options(int rank, int num_ranks, int num_nodes, int num_owners, std::int64_t chunk_values,
                              int depth) {
  AllReduceOptions options;
  options.rank = rank;
  options.num_ranks = num_ranks;
  options.num_nodes = num_nodes;
  options.num_owners = num_owners;
  options.pipeline.chunk_values = chunk_values;
  options.pipeline.depth = depth;
  return options;
}

std::unique_ptr<AllReduceHandle> make_allreduce(ByteArray signals, FloatArray staging, std::optional<int> peers,
                                                int rank, std::vector<int> node_ranks, std::vector<int> peer_ranks,
                                                int num_nodes, int num_owners, std::int64_t chunk_values, int depth,
                                                double timeout_s, double spin_s, bool background) {
  const int num_ranks = static_cast<int>(node_ranks.size());
  if (rank < 0 || rank >= num_ranks) throw py::value_error("rank is outside the node");
  if (chunk_values < 1 || depth < 1 || num_owners < 1) throw py::value_error("expected positive sizes");
  AllReduceOptions options = make_options(rank, num_ranks, num_nodes, num_owners, chunk_values, depth);
  options.node_ranks = std::move(node_ranks);
  options.peer_ranks = std::move(peer_ranks);
  options.timeout_s = timeout_s;
  options.spin_s = spin_s;
  options.background = background;
  if (checked_size(staging, "staging") < AllReduce::staging_values(options))
    throw py::value_error("staging is too small: expected " + std::to_string(AllReduce::staging_values(options)) +
                          " values, received " + std::to_string(staging.size()));
  auto handle = std::make_unique<AllReduceHandle>();
  auto* const memory = reinterpret_cast<std::byte*>(signals.mutable_data());
  const MPI_Comm comm = peers ? MPI_Comm_f2c(static_cast<MPI_Fint>(*peers)) : MPI_COMM_NULL;
  handle->engine = std::make_unique<AllReduce>(memory, static_cast<std::size_t>(signals.size()), staging.mutable_data(),
                                               comm, std::move(options));
  handle->signals = std::move(signals);
  handle->staging = std::move(staging);
  return handle;
}

std::uint64_t start(AllReduceHandle& handle, std::optional<FloatArray> input, FloatArray output, int codec,
                    std::optional<FloatArray> residual, float scale) {
  Reduction reduction;
  const std::size_t n = checked_size(output, "output");
  if (input) checked_size(*input, "input", n);
  if (residual) checked_size(*residual, "residual", n);
  reduction.input = input ? input->data() : nullptr;
  reduction.output = output.mutable_data();
  reduction.size = static_cast<std::int64_t>(n);
  reduction.codec = static_cast<Codec>(codec);
  reduction.residual = residual ? residual->mutable_data() : nullptr;
  reduction.scale = scale;
  block_values(reduction.codec);  // refuses what is no codec
  std::uint64_t number = 0;
  {
    const py::gil_scoped_release unlocked;
    number = handle.engine->start(reduction);
  }
  handle.in_use.emplace(number, py::make_tuple(std::move(input), std::move(output), std::move(residual)));
  return number;
}

void finish(AllReduceHandle& handle, std::uint64_t number) {
  {
    const py::gil_scoped_release unlocked;
    handle.engine->finish(number);
  }
  handle.release(number);
}

}  // namespace

void bind_allreduce(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<AllReduceHandle>(m, "AllReduce")
      .def(py::init(&make_allreduce), py::kw_only(), py::arg("signals").noconvert(), py::arg("staging").noconvert(),
           py::arg("peers"), py::arg("rank"), py::arg("node_ranks"), py::arg("peer_ranks"), py::arg("num_nodes"),
           py::arg("num_owners"), py::arg("chunk_values"), py::arg("depth"), py::arg("timeout_s"), py::arg("spin_s"),
           py::arg("background"))
      .def_static("signal_nbytes", &AllReduce::signal_nbytes, py::arg("num_ranks"))
      .def_static(
          "staging_values",
          [](int num_ranks, int num_owners, std::int64_t chunk_values, int depth) {
            return AllReduce::staging_values(make_options(0, num_ranks, 1, num_owners, chunk_values, depth));
          },
          py::arg("num_ranks"), py::arg("num_owners"), py::arg("chunk_values"), py::arg("depth"))
      .def_static(
          "slice",
          [](std::int64_t size, int num_owners, int owner) {
            const Extent extent = AllReduce::slice(size, num_owners, owner);
            return py::make_tuple(extent.lo, extent.hi);
          },
          py::arg("size"), py::arg("num_owners"), py::arg("owner"))
      .def("start", &start, py::arg("input").noconvert(), py::arg("output").noconvert(), py::arg("codec"),
           py::arg("residual").noconvert(), py::arg("scale"))
      .def(
          "progress", [](AllReduceHandle& h) { return h.engine->progress(); }, unlocked)
      .def("finish", &finish, py::arg("number"))
      .def(
          "done", [](AllReduceHandle& h, std::uint64_t number) { return h.engine->done(number); }, py::arg("number"),
          unlocked)
      .def_property_readonly("sent_nbytes", [](AllReduceHandle& h) { return h.engine->sent_nbytes(); })
      .def_property_readonly("wait_s", [](const AllReduceHandle& h) { return h.engine->wait_s(); });
}

}  // namespace lepton
