"""Training: build a run, step, evaluate, save and resume; `python -m lepton_mpi.train`."""
