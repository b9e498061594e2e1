"""The command line: `python -m lepton_mpi train`, `evaluate` and `predict`."""
