#include <mpi.h>
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace lepton {

// The text of the MPI library that the extension itself calls, to be held against mpi4py's; valid before MPI_Init.
static std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

void bind_build_info(py::module_& m) {
  m.attr("__version__") = LEPTON_VERSION;
  m.attr("mpi_family") = LEPTON_MPI_FAMILY;
  m.def("mpi_library_version", &mpi_library_version);
}

}  // namespace lepton
