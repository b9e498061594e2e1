// The extension module lepton_mpi._crc32. It needs neither MPI nor NumPy nor pybind11, since the process that writes
// checkpoints beside a rank loads it too.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "lepton/crc32.hpp"

namespace {

using Function = std::uint32_t (*)(std::uint32_t, const unsigned char*, std::size_t);
constexpr Py_ssize_t kShort = 4096;  // handing the interpreter's lock over takes longer than so many bytes

template <Function kFunction>
PyObject* digest(PyObject*, PyObject* arguments) {
  Py_buffer data;
  unsigned int before = 0;
  if (!PyArg_ParseTuple(arguments, "y*|I", &data, &before)) return nullptr;
  std::uint32_t found;
  const auto* bytes = static_cast<const unsigned char*>(data.buf);
  const auto size = static_cast<std::size_t>(data.len);
  if (data.len < kShort) {
    found = kFunction(before, bytes, size);
  } else {
    Py_BEGIN_ALLOW_THREADS;
    found = kFunction(before, bytes, size);
    Py_END_ALLOW_THREADS;
  }
  PyBuffer_Release(&data);
  return PyLong_FromUnsignedLong(found);
}

PyMethodDef methods[] = {
    {"crc32", digest<lepton::crc32>, METH_VARARGS,
     "crc32(data, value=0, /)\n--\n\nReturn the CRC-32 of bytes that follow others with the CRC-32 `value`, as "
     "zlib.crc32 does."},
    {"crc32_by_tables", digest<lepton::crc32_by_tables>, METH_VARARGS,
     "crc32_by_tables(data, value=0, /)\n--\n\nReturn the same without instructions that only some machines have."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef_Slot slots[] = {{0, nullptr}};
PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_crc32", "CRC-32 of bytes.", 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__crc32() { return PyModuleDef_Init(&module); }
