"""lepton_mpi: MPI-native deep-learning training for HPC clusters."""

__version__ = "0.1.0"
__all__ = ["LeptonModel", "__version__"]


def __getattr__(name: str) -> object:
    """Import `LeptonModel` when it is first asked for (PEP 562).

    `import lepton_mpi` happens in every command before the number of threads is known, and NumPy's
    libraries read that number when they are loaded; so neither NumPy nor MPI may come with it.
    The type checkers' view of this module is `__init__.pyi`.
    """
    if name != "LeptonModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from lepton_mpi.runtime.threads import limit_threads

    limit_threads(0)
    # By name: the layers below import this module for its version, and must not reach upwards through it.
    return importlib.import_module("lepton_mpi.train.model").LeptonModel
