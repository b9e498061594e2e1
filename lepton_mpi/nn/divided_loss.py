"""Softmax cross entropy of outputs whose classes are divided over the shards. Dims: B samples, C classes."""

from __future__ import annotations

from typing import Any, ClassVar, final

from lepton_mpi.comm.contract import collective
from lepton_mpi.nn.loss import Loss, LossResult
from lepton_mpi.nn.losses import SoftmaxCrossEntropy
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.divided_cross_entropy import ClassChunks, divided_cross_entropy_with_gradient


@final
class DividedSoftmaxCrossEntropy(Loss):
    """What `SoftmaxCrossEntropy` is, of the classes of this shard: output [B, ..., own part of C], target int64 [B, ...].

    Every shard finds the same sums, and the gradient of its own part of the output.
    """

    takes_divided: ClassVar[bool] = True

    def __init__(self, whole: SoftmaxCrossEntropy, num_classes: int, place: Place) -> None:
        """Divide a loss. Local.

        Args:
            whole: has the weights of the classes, and the smoothing.
            num_classes: C.
            place: says how a dim of C is divided, and reaches the other shards.
        """
        self._whole, cut = whole, place.cut
        num = cut.num_chunks(num_classes)
        edges = (*(cut.chunk(k, num_classes)[0] for k in range(num)), num_classes)
        self._chunks = ClassChunks(edges, *cut.own_chunks(place.shard, num_classes))
        # A dim of one column a chunk is divided just as the classes are.
        self._gather = place.gather(num)

    @collective("grid.shard")
    def __call__(self, output: Any, target: Any, factor: float) -> LossResult:
        """Return the loss of the outputs of all shards, and the gradient of those here. Collective over grid.shard."""
        whole = self._whole
        weights = array_module(output).asarray(whole.class_weights, output.dtype) if whole.class_weights else None
        sums, gradient = divided_cross_entropy_with_gradient(
            output, target, factor, self._chunks, self._gather.forward, weights, whole.label_smoothing
        )
        return LossResult(sums.loss, sums.weight, gradient, sums.num_correct, sums.num_counted)
