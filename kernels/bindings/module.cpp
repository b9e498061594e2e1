// The extension module lepton_mpi._native; each part of it is bound in the file of its name.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace lepton {
void bind_build_info(py::module_& m);
void bind_bf16_rounding(py::module_& m);
void bind_codecs(py::module_& m);
void bind_dropout(py::module_& m);
void bind_elementwise(py::module_& m);
void bind_embedding(py::module_& m);
void bind_cross_entropy(py::module_& m);
void bind_softmax(py::module_& m);
void bind_topk(py::module_& m);
void bind_updates(py::module_& m);
void bind_images(py::module_& m);
void bind_low_rank(py::module_& m);
void bind_batch_norm(py::module_& m);
void bind_normalisation(py::module_& m);
void bind_segment(py::module_& m);
void bind_exact_sum(py::module_& m);
void bind_exchange(py::module_& m);
void bind_allreduce(py::module_& m);
}  // namespace lepton

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ parts of lepton_mpi; import them through lepton_mpi.native.";
  lepton::bind_build_info(m);
  lepton::bind_bf16_rounding(m);
  lepton::bind_codecs(m);
  lepton::bind_dropout(m);
  lepton::bind_elementwise(m);
  lepton::bind_embedding(m);
  lepton::bind_cross_entropy(m);
  lepton::bind_softmax(m);
  lepton::bind_topk(m);
  lepton::bind_updates(m);
  lepton::bind_images(m);
  lepton::bind_low_rank(m);
  lepton::bind_batch_norm(m);
  lepton::bind_normalisation(m);
  lepton::bind_segment(m);
  lepton::bind_exact_sum(m);
  lepton::bind_exchange(m);
  lepton::bind_allreduce(m);
}
