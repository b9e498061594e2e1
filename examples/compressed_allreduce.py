"""Sum gradients over ranks with CompressedAllreduce, in a program that has its own model and loop.

    mpirun -n 4 python examples/compressed_allreduce.py [codec] [ranks per node]

Data-parallel least squares in plain NumPy: every rank has rows of its own and the same weights. Codecs matter between
nodes; on one machine, say how many ranks shall count as a node (1 here) to see them at work.
"""

import sys

import numpy as np
from mpi4py import MPI

from lepton_mpi.comm import CompressedAllreduce

comm = MPI.COMM_WORLD
codec = sys.argv[1] if len(sys.argv) > 1 else "int8"
ranks_per_node = int(sys.argv[2]) if len(sys.argv) > 2 else 1

truth = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
rows = np.random.default_rng([1, comm.rank]).standard_normal((64, truth.size)).astype(np.float32)
targets = rows @ truth
weights = np.zeros_like(truth)

# feedback: what the codec loses of a gradient is added to the next one.
allreduce = CompressedAllreduce(comm, codec, average=True, feedback=True, ranks_per_node=ranks_per_node)
for step in range(30):
    error = rows @ weights - targets
    gradient = rows.T @ error / len(targets)
    allreduce(gradient)
    weights -= 2e-3 * gradient
    loss = comm.allreduce(float(error @ error)) / comm.size / len(targets)
    if comm.rank == 0 and step % 10 == 9:
        print(f"step {step + 1}: loss {loss:.4g}, {allreduce.sent_nbytes / (step + 1) / 1e3:.1f} KB sent a step")

assert len(set(comm.allgather(weights.tobytes()))) == 1, "all ranks hold the same weights, to the last bit"
allreduce.free()
