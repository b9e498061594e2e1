"""PyTorch's DistributedDataParallel with our all-reduce in the place of its own: gradients travel compressed over MPI.

    from lepton_mpi.interop.torch import register_comm_hook
    hook = register_comm_hook(model, MPI.COMM_WORLD, "int8")   # model is a DistributedDataParallel
    ...                                                        # train as before
    hook.free()

PyTorch's process group (gloo will do) still broadcasts the first weights and the order of buckets. Torch is imported only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.compressed_allreduce import AUTO, CompressedAllreduce
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.pending_sum import Pending
from lepton_mpi.errors import ConfigError

if TYPE_CHECKING:
    from lepton_mpi.runtime.mpi import MPI


@collective("comm")
def register_comm_hook(
    model: Any,
    comm: MPI.Intracomm,
    codec: str = "int8",
    *,
    allow: Sequence[str] = ("exact", "bf16"),
    feedback: bool | None = None,
    share: float = 0.05,
    rank: int = 4,
    ranks_per_node: int = 0,
    timeout_s: float = 300.0,
    background: bool = False,
) -> CommHook:
    """Let a DistributedDataParallel model average its gradients with `CompressedAllreduce`.

    Collective over comm. Call it before the first backward pass.

    Args:
        model: a DistributedDataParallel whose process group has the same ranks as comm, in the same order.
        comm: all ranks of the process group.
        codec, allow, feedback, share, rank, ranks_per_node, timeout_s, background: see `CompressedAllreduce`.

    Returns:
        The hook, which must be freed when training is over.

    Raises:
        ConfigError: PyTorch is missing, the model is no DistributedDataParallel, or its ranks are not those of comm.
        CodecError: there is no such codec, a number is out of its range, or MPI allows no background thread.
        SharedMemoryError: the ranks of a node cannot share enough memory.
    """
    torch = require_torch()
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise ConfigError(f"expected a torch DistributedDataParallel model, received {type(model).__name__}; wrap it first")
    group = model.process_group
    theirs, ours = (group.rank(), group.size()), (comm.Get_rank(), comm.Get_size())
    if theirs != ours:
        raise ConfigError(
            "expected a process group with the ranks of the communicator, received rank {} of {} where MPI has {} of {}; "
            "start it with MPI's rank and size".format(*theirs, *ours)
        )
    hook = CommHook(
        CompressedAllreduce(
            comm,
            codec,
            allow=allow,
            feedback=feedback,
            share=share,
            rank=rank,
            average=True,
            ranks_per_node=ranks_per_node,
            timeout_s=timeout_s,
            background=background,
        ),
        overlaps=codec != AUTO,  # auto measures only sums that begin and end in one call
    )
    model.register_comm_hook(None, lambda state, bucket: hook.reduce(bucket))  # it refuses annotations that are strings
    return hook


def require_torch() -> Any:
    """Return the package torch, which is an optional one. Local.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        raise ConfigError(
            f"PyTorch's hook needs the Python package torch, which cannot be imported ({error}): pip install lepton_mpi[torch]"
        ) from error
    return torch


@dataclass(frozen=True)
class _Bucket:
    """A bucket as it was when it came first.

    Attributes:
        name: of its sums.
        parameters: identity and size of the gradients in it, in order.
    """

    name: str
    parameters: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Started:
    """A bucket on its way: the tensor, its host memory, and the future that PyTorch waits for."""

    tensor: Any
    host: Any
    future: Any
    pending: Pending


@final
class CommHook:
    """The state of a registered hook.

    Attributes:
        allreduce: what sums the buckets, for its counters and its feedback state.
    """

    def __init__(self, allreduce: CompressedAllreduce, overlaps: bool) -> None:
        """Begin without buckets. Local.

        Args:
            allreduce: averages over ranks.
            overlaps: whether sums of buckets run while the backward pass goes on.
        """
        self.allreduce = allreduce
        self._torch = require_torch()
        self._overlaps = overlaps
        self._buckets: dict[int, _Bucket] = {}
        self._num_names = 0
        self._owed: dict[int, NDArray[np.float32]] = {}
        self._started: list[_Started] = []

    @collective("the ranks of the model")
    def reduce(self, bucket: Any) -> Any:
        """Start the average of a bucket; with the last bucket of a backward pass, wait for all of them.

        Collective over the ranks of the model. PyTorch calls it for every bucket, in the order of their indices on all ranks.

        Args:
            bucket: a torch.distributed.GradBucket.

        Returns:
            A future of the averaged flat tensor, done when that of the last bucket is.

        Raises:
            ConfigError: gradients are not float32.
            StallError: other ranks stayed away too long.
        """
        tensor = bucket.buffer()
        if tensor.dtype != self._torch.float32:
            raise ConfigError(f"gradients for the hook: expected torch.float32, received {tensor.dtype}; convert the model")
        name = self._name_of(bucket)
        host = tensor.detach().cpu()  # itself on the CPU
        future = self._torch.futures.Future(devices=[tensor.device] if tensor.is_cuda else None)
        if self._overlaps:
            shapes = [tuple(parameter.shape) for parameter in bucket.parameters()]  # of what lies in it, in this order
            pending = self.allreduce.start(host.numpy(), name=name, shapes=shapes)
        else:
            pending = self._sum(host.numpy(), name)
        self._started.append(_Started(tensor, host, future, pending))
        if not bucket.is_last():
            self.allreduce.progress()
            return future
        # PyTorch waits for futures only after the last bucket has come, and nothing else would complete them.
        started, self._started = self._started, []
        for one in started:
            one.pending.finish()
            if one.host.data_ptr() != one.tensor.data_ptr():
                one.tensor.copy_(one.host)
            one.future.set_result(one.tensor)
        return future

    @collective("the ranks of the model")
    def _sum(self, values: NDArray[np.float32], name: str) -> Pending:
        """Average at once. Collective over the ranks of the model."""
        self.allreduce(values, name=name)
        return _Done()

    @collective("the ranks of the model")
    def _name_of(self, bucket: Any) -> str:
        """Return under which name the feedback of a bucket is kept.

        Collective over the ranks of the model. PyTorch distributes gradients anew after the first backward pass, in the order
        in which they became ready; what is owed of each goes along.
        """
        index = bucket.index()
        parameters = tuple((id(parameter), parameter.numel()) for parameter in bucket.parameters())
        known = self._buckets.get(index)
        if known is not None and known.parameters == parameters:
            return known.name
        if known is not None:
            self._take_owed(index)
        self._num_names += 1
        name = f"bucket {index}, {self._num_names}"
        self._buckets[index] = _Bucket(name, parameters)
        owed = [self._owed.pop(one, None) for one, _ in parameters]
        if any(part is not None for part in owed):
            parts = (np.zeros(n, np.float32) if part is None else part for part, (_, n) in zip(owed, parameters, strict=True))
            self.allreduce.load_feedback_state({name: np.concatenate(list(parts))})
        return name

    @collective("the ranks of the model")
    def _take_owed(self, first: int) -> None:
        """Forget the buckets from an index on, and keep what is owed of every gradient in them.

        Collective over the ranks of the model.
        """
        state = self.allreduce.feedback_state()
        for index in [i for i in self._buckets if i >= first]:
            bucket = self._buckets.pop(index)
            owed = state.get(bucket.name)
            if owed is not None:
                ends = np.cumsum([n for _, n in bucket.parameters])
                pieces = np.split(owed.reshape(-1), ends[:-1])
                self._owed.update((one, piece) for (one, _), piece in zip(bucket.parameters, pieces, strict=True))
            self.allreduce.forget(bucket.name)

    @collective("the ranks of the model")
    def free(self) -> None:
        """Give communicators and memory back; the model must not be trained afterwards.

        Collective over the ranks of the model.
        """
        self.allreduce.free()


@final
class _Done:
    """A sum that is there."""

    def finish(self) -> None:
        """Return at once. Local."""

    def done(self) -> bool:
        """Return True. Local."""
        return True
