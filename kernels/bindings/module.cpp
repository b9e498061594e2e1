// The extension module lepton_mpi._native; each part of it is bound in the file of its name.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace lepton {
void bind_build_info(py::module_& m);
void bind_codecs(py::module_& m);
void bind_updates(py::module_& m);
void bind_segment(py::module_& m);
void bind_exchange(py::module_& m);
}  // namespace lepton

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ parts of lepton_mpi; import them through lepton_mpi.native.";
  lepton::bind_build_info(m);
  lepton::bind_codecs(m);
  lepton::bind_updates(m);
  lepton::bind_segment(m);
  lepton::bind_exchange(m);
}
