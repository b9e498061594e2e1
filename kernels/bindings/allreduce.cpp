#include "lepton/allreduce.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace lepton {
namespace {

// How sums of a size class are done while nobody thinks about it: short ones take about as long as a few lines of
// Python.
struct ShortCut {
  bool by_mpi = false;  // else by the engine, exactly
  float scale = 1.0f;
  std::int64_t left = 0;        // sums that may still be done so
  std::vector<double> seconds;  // that they took
};

// The engine holds raw pointers, so this keeps the arrays they point into until they are finished.
struct AllReduceHandle {
  ByteArray signals;
  FloatArray staging;
  std::map<std::uint64_t, py::tuple> in_use;
  std::array<ShortCut, 65> short_cuts;  // by the bits of the number of values
  std::unique_ptr<AllReduce> engine;

  ~AllReduceHandle() {
    const py::gil_scoped_release unlocked;
    engine.reset();
  }

  ShortCut& short_cut(std::int64_t size) {
    std::size_t bits = 0;
    for (auto rest = static_cast<std::uint64_t>(size); rest > 0; rest >>= 1) ++bits;
    return short_cuts[bits];
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
                                                double timeout_s, double spin_s, bool background,
                                                std::optional<int> world) {
  const int num_ranks = static_cast<int>(node_ranks.size());
  if (rank < 0 || rank >= num_ranks) throw py::value_error("rank is outside the node");
  if (chunk_values < 1 || depth < 1 || num_owners < 1) throw py::value_error("expected positive sizes");
  AllReduceOptions options = make_options(rank, num_ranks, num_nodes, num_owners, chunk_values, depth);
  options.node_ranks = std::move(node_ranks);
  options.peer_ranks = std::move(peer_ranks);
  options.timeout_s = timeout_s;
  options.spin_s = spin_s;
  options.background = background;
  options.world = world ? MPI_Comm_f2c(static_cast<MPI_Fint>(*world)) : MPI_COMM_NULL;
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
                    std::optional<FloatArray> residual, float scale, double share) {
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
  reduction.share = share;
  block_values(reduction.codec);  // refuses what is no codec
  if (!(share > 0.0 && share <= 1.0)) throw py::value_error("expected a share in (0, 1]");
  std::uint64_t number = 0;
  {
    const py::gil_scoped_release unlocked;
    number = handle.engine->start(reduction);
  }
  handle.in_use.emplace(number, py::make_tuple(std::move(input), std::move(output), std::move(residual)));
  return number;
}

// Whether a sum may be done in an array itself: float32, in the machine's byte order, contiguous, aligned, writeable.
bool is_plain_array(PyObject* object) {
  using py::detail::npy_api;
  constexpr int needed = npy_api::NPY_ARRAY_ALIGNED_ | npy_api::NPY_ARRAY_C_CONTIGUOUS_ | npy_api::NPY_ARRAY_WRITEABLE_;
  static const py::object* const float32 = new py::object(py::dtype::of<float>());  // one object for all such arrays
  static PyTypeObject* const array_type = npy_api::get().PyArray_Type_;
  if (Py_TYPE(object) != array_type) return false;
  const auto* const array = py::detail::array_proxy(object);
  return array->descr == float32->ptr() && (array->flags & needed) == needed;
}

// A sum in place by a way that is known. False where nothing was done: the way is not known, or the array needs a copy.
bool short_sum(AllReduceHandle& handle, PyObject* object) {
  if (!is_plain_array(object)) return false;
  const auto* const array = py::detail::array_proxy(object);
  std::int64_t size = 1;
  for (int d = 0; d < array->nd; ++d) size *= array->dimensions[d];
  ShortCut& short_cut = handle.short_cut(size);
  if (short_cut.left <= 0) return false;
  auto* const values = reinterpret_cast<float*>(array->data);
  double seconds = 0;
  {
    const py::gil_scoped_release unlocked;
    seconds = short_cut.by_mpi ? handle.engine->sum_by_mpi(values, size, short_cut.scale)
                               : handle.engine->sum({values, values, size, Codec::exact, nullptr, short_cut.scale});
  }
  --short_cut.left;
  short_cut.seconds.push_back(seconds);
  return true;
}

constexpr const char* kHandle = "lepton.AllReduce";

// As Python calls it: without what pybind11 does around each call, which takes as long as MPI does for a short sum.
PyObject* short_sum_of(PyObject* self, PyObject* object) {
  auto* const handle = static_cast<AllReduceHandle*>(PyCapsule_GetPointer(self, kHandle));
  if (handle == nullptr) return nullptr;
  try {
    return PyBool_FromLong(short_sum(*handle, object));
  } catch (const StallError& error) {
    PyErr_SetString(py::module_::import("lepton_mpi.errors").attr("StallError").ptr(), error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

py::object short_sum_function(const py::object& handle) {
  static PyMethodDef method{"short_sum", &short_sum_of, METH_O, nullptr};
  PyObject* const self = PyCapsule_New(handle.cast<AllReduceHandle*>(), kHandle, [](PyObject* capsule) {
    Py_DECREF(static_cast<PyObject*>(PyCapsule_GetContext(capsule)));
  });
  if (self == nullptr) throw py::error_already_set();
  const auto capsule = py::reinterpret_steal<py::object>(self);
  PyCapsule_SetContext(self, handle.inc_ref().ptr());  // lives as long as the function
  PyObject* const function = PyCFunction_New(&method, self);
  if (function == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(function);
}

void settle(AllReduceHandle& handle, std::int64_t size, bool by_mpi, float scale, std::int64_t count) {
  ShortCut& short_cut = handle.short_cut(size);
  short_cut.by_mpi = by_mpi;
  short_cut.scale = scale;
  short_cut.left = count;
}

std::vector<double> unsettle(AllReduceHandle& handle, std::int64_t size) {
  ShortCut& short_cut = handle.short_cut(size);
  short_cut.left = 0;
  return std::exchange(short_cut.seconds, {});
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
           py::arg("background"), py::arg("world") = py::none())
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
           py::arg("residual").noconvert(), py::arg("scale"), py::arg("share") = 1.0)
      .def(
          "progress", [](AllReduceHandle& h) { return h.engine->progress(); }, unlocked)
      .def("finish", &finish, py::arg("number"))
      .def_property_readonly("short_sum", &short_sum_function)
      .def("settle", &settle, py::arg("size"), py::arg("by_mpi"), py::arg("scale"), py::arg("count"))
      .def("unsettle", &unsettle, py::arg("size"))
      .def(
          "done", [](AllReduceHandle& h, std::uint64_t number) { return h.engine->done(number); }, py::arg("number"),
          unlocked)
      .def_property_readonly("sent_nbytes", [](AllReduceHandle& h) { return h.engine->sent_nbytes(); })
      .def_property_readonly("wait_s", [](const AllReduceHandle& h) { return h.engine->wait_s(); });
}

}  // namespace lepton
