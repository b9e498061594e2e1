"""PyTorch's DistributedDataParallel, with gradients that travel compressed over MPI.

    mpirun -n 2 python examples/torch_ddp_hook.py [codec] [ranks per node]

Codecs matter between nodes; on one machine, say how many ranks shall count as a node (1 here) to see them at work.
"""

import os
import sys

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch.nn.parallel import DistributedDataParallel

from lepton_mpi.interop.torch import register_comm_hook

comm = MPI.COMM_WORLD
codec = sys.argv[1] if len(sys.argv) > 1 else "int8"
ranks_per_node = int(sys.argv[2]) if len(sys.argv) > 2 else 1

# The process group broadcasts the first weights; on several hosts, MASTER_ADDR names that of rank 0.
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("MASTER_PORT", str(comm.bcast(29500 + os.getpid() % 10000)))
dist.init_process_group("gloo", rank=comm.rank, world_size=comm.size)

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
inputs = torch.randn(comm.size, 512, 64)[comm.rank]  # every rank has rows of its own
targets = torch.sin(inputs.sum(1, keepdim=True) / 8)

model = DistributedDataParallel(network)
hook = register_comm_hook(model, comm, codec, ranks_per_node=ranks_per_node)

optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(60):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()
    mean_loss = comm.allreduce(loss.item()) / comm.size
    if comm.rank == 0 and step % 20 == 19:
        print(f"step {step + 1}: loss {mean_loss:.4g}, {hook.allreduce.sent_nbytes / (step + 1) / 1e3:.1f} KB sent a step")

weights = b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters())
assert len(set(comm.allgather(weights))) == 1, "all ranks hold the same weights, to the last bit"
hook.free()
dist.destroy_process_group()
