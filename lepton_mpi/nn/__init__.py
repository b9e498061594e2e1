"""Layers, parameters and losses of one rank; no MPI in here."""
