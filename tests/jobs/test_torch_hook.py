"""The hook for PyTorch's DistributedDataParallel: the same weights on all ranks, and training as with PyTorch's own sums."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
Mpirun = Callable[..., "subprocess.CompletedProcess[str]"]

# Small buckets: there are several, and PyTorch fills them anew after the first step.
PROGRAM = """
import os
import numpy as np
import torch
import torch.distributed as dist
from mpi4py import MPI
from torch.nn.parallel import DistributedDataParallel
from lepton_mpi.comm import CompressedAllreduce
from lepton_mpi.errors import ConfigError
from lepton_mpi.interop.torch import register_comm_hook

comm = MPI.COMM_WORLD
os.environ["MASTER_ADDR"] = "127.0.0.1"
os.environ["MASTER_PORT"] = str(comm.bcast(20000 + os.getpid() % 30000))
dist.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
torch.set_num_threads(1)
torch.manual_seed(1)
inputs = torch.randn(comm.size, 128, 16)[comm.rank]
targets = torch.sin(inputs.sum(1, keepdim=True) / 4)


def make_model(dtype=torch.float32):
    torch.manual_seed(2)
    layers = [torch.nn.Linear(16, 96), torch.nn.Tanh(), torch.nn.Linear(96, 96), torch.nn.Tanh(), torch.nn.Linear(96, 1)]
    return DistributedDataParallel(torch.nn.Sequential(*layers).to(dtype), bucket_cap_mb=0.01)


def weights_of(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def train(codec, steps=60, lr=0.05, **options):
    model = make_model()
    hook = register_comm_hook(model, comm, codec, ranks_per_node=1, timeout_s=60.0, **options) if codec else None
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    if hook is not None:
        layouts.append(len(hook._buckets))
        owed.append(sum(v.size for name, v in hook.allreduce.feedback_state().items() if not name.endswith("/factors")))
        sent.append(hook.allreduce.sent_nbytes)
        hook.free()
    weights = weights_of(model)
    assert len(set(comm.allgather(weights.tobytes()))) == 1, codec
    return comm.allreduce(loss.item()) / comm.size, weights


layouts, owed, sent = [], [], []
plain_loss, plain = train(None)
exact_loss, exact = train("exact")
assert np.abs(exact - plain).max() < 1e-4 and abs(exact_loss - plain_loss) < 1e-5 * plain_loss + 1e-6
assert plain_loss < 0.1, plain_loss  # it learned something
first_loss, _ = train(None, steps=1)
# A rate at which one bit, which is late with most of a gradient, still follows.
more = {"topk": {"share": 0.1}, "powersgd": {"rank": 2}}
codecs = [("int8", 0.05, 1.1 * plain_loss), ("int4", 0.05, 1.1 * plain_loss), ("sign1", 0.01, 0.4 * first_loss)]
codecs += [("topk", 0.02, 0.4 * first_loss), ("powersgd", 0.02, 0.4 * first_loss)]
for codec, lr, bound in codecs:
    loss, weights = train(codec, lr=lr, feedback=True, **more.get(codec, {}))
    assert weights.tobytes() != exact.tobytes(), codec  # the codec was at work
    assert loss < bound + 1e-4, (codec, loss, plain_loss, first_loss)
    assert owed[-1] == plain.size, (codec, owed)  # what PyTorch distributed anew is owed once, under the new buckets alone
    assert sent[-1] < sent[0] / 3, (codec, sent)
background, _ = train("int8", background=True)
assert background < 1.1 * plain_loss + 1e-4
auto, _ = train("auto", steps=20)
assert np.isfinite(auto)
assert min(layouts) > 1, layouts
for wrong, expected in [
    (lambda: register_comm_hook(torch.nn.Linear(2, 2), comm), "expected a torch DistributedDataParallel model, received Linear"),
    (lambda: register_comm_hook(make_model(), MPI.COMM_SELF), "start it with MPI's rank and size"),
]:
    try:
        wrong()
    except ConfigError as error:
        assert expected in str(error), error
    else:
        raise AssertionError(expected)
doubles = make_model(torch.float64)
hook = register_comm_hook(doubles, comm)
try:
    doubles(inputs.double()).sum().backward()
except ConfigError as error:
    assert "expected torch.float32, received torch.float64" in str(error), error
else:
    raise AssertionError("float64 gradients were taken")
hook.free()
if comm.rank == 0:
    print("the hook did as PyTorch does:", plain_loss, layouts)
comm.Barrier()
os._exit(0)  # a backward pass that failed leaves PyTorch's reducer unfinished
"""


@pytest.mark.timeout_s(150)
def test_hook(mpirun: Mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    job = mpirun(2, program, env={"OMP_NUM_THREADS": "1"})
    assert "the hook did as PyTorch does" in job.stdout, job.stdout + job.stderr


def test_example_of_the_hook(mpirun: Mpirun) -> None:
    job = mpirun(2, ROOT / "examples" / "torch_ddp_hook.py", "int8", env={"OMP_NUM_THREADS": "1"})
    assert job.returncode == 0, job.stdout + job.stderr
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in job.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 3
    assert losses[-1] < 0.5 * losses[0]
