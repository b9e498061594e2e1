"""Damage to checkpoints, for benchmarks/corruption_trials.py."""
