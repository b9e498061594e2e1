#include "lepton/segment.hpp"

#include <pybind11/pybind11.h>

#include <system_error>

namespace py = pybind11;

namespace lepton {

void bind_segment(py::module_& m) {
  // std::system_error becomes OSError with its errno, as Python code expects.
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const std::system_error& error) {
      py::object os_error = py::reinterpret_borrow<py::object>(PyExc_OSError)(error.code().value(), error.what());
      PyErr_SetObject(PyExc_OSError, os_error.ptr());
    }
  });
  py::class_<Segment>(m, "Segment", py::buffer_protocol())
      .def_static("create", &Segment::create, py::arg("name"), py::arg("nbytes"),
                  py::call_guard<py::gil_scoped_release>())
      .def_static("open", &Segment::open, py::arg("name"), py::arg("nbytes"))
      .def_static("anonymous", &Segment::anonymous, py::arg("nbytes"))
      .def("unlink", &Segment::unlink)
      .def_property_readonly("nbytes", &Segment::nbytes)
      .def_buffer([](Segment& segment) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(segment.data()),
                               static_cast<py::ssize_t>(segment.nbytes()), false);
      });
}

}  // namespace lepton
