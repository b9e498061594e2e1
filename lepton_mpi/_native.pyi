"""Types of the C++ extension. Every function releases the GIL around its work."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str
mpi_family: str
