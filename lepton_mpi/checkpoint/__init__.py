"""Checkpoints: one HDF5 file of logical tensors and a manifest, written by all ranks, read by any grid."""

# A parallel h5py imports mpi4py, which would initialise MPI unless runtime.mpi has told it not to.
# A package is imported before its modules, so this one line precedes every `import h5py` in here.
import lepton_mpi.runtime.mpi  # noqa: F401
