"""What `benchmarks/crash_trials.py` is made of: a shim that kills or logs, jobs under it, and a model of power loss."""
