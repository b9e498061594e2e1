"""lepton_mpi: MPI-native deep-learning training for HPC clusters."""

__version__ = "0.1.0"
