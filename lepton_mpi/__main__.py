"""`python -m lepton_mpi`: see `cli.main`."""

from __future__ import annotations

import sys

from lepton_mpi.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
