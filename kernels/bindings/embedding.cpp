#include "lepton/embedding.hpp"

#include "arrays.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace lepton {
namespace {

using IdArray = py::array_t<std::int64_t, py::array::c_style>;

void bound_embedding_add(const FloatArray& rows, const IdArray& ids, std::int64_t first, FloatArray& table,
                         std::size_t features) {
  const std::size_t n = checked_size(ids, "ids");
  checked_size(rows, "rows", n * features);
  const std::size_t entries = features > 0 ? checked_size(table, "table") / features : 0;
  checked_size(table, "table", entries * features);
  const float* rows_data = rows.data();
  const std::int64_t* ids_data = ids.data();
  float* table_data = table.mutable_data();
  const py::gil_scoped_release unlocked;
  embedding_add(rows_data, ids_data, n, first, table_data, entries, features);
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("embedding_add", &bound_embedding_add, py::arg("rows").noconvert(), py::arg("ids").noconvert(),
        py::arg("first"), py::arg("table").noconvert(), py::arg("features"));
}

}  // namespace lepton
