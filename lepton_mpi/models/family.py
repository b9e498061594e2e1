"""What a model family declares: its layers as plain data, before any array exists."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.task import Task
from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.parameter import ParameterSpec

# What the first layer takes: float32 values, normalised, or int64 numbers of tokens, users, items.
InputKind = Literal["values", "ids"]


@dataclass(frozen=True)
class DataShape:
    """What a model must know of the data.

    Attributes:
        input_shape: shape of one sample.
        num_classes: number of classes, or of tokens of the vocabulary; 0 where labels are values.
        label_shape: shape of one sample's label; () for one class or one value.
        id_counts: one more than the largest id of each column, for inputs that are ids in columns (users, items).
    """

    input_shape: tuple[int, ...]
    num_classes: int = 0
    label_shape: tuple[int, ...] = ()
    id_counts: tuple[int, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Outputs that a model needs: one a class, or one a value."""
        return self.num_classes or math.prod(self.label_shape)


@dataclass(frozen=True)
class ModelSpec:
    """A model: its layers in order, and what goes in.

    Attributes:
        family: name of the family.
        task: what it is trained to do.
        data: shape of the data it was declared for.
        layers: layers in order; a stage is a run of them. Layers that name the same parameter share it.
        input_kind: what the first layer takes.
        summary: sizes, for the banner.
        pad_id: id that fills short sequences up and gets no attention; None where there is none.
        batch_statistics: whether a layer looks at the micro-batch as a whole, so that its size matters.
        divides_positions: whether its layers can work on slices of the positions, see `Place.sequence`.
    """

    family: str
    task: Task
    data: DataShape
    layers: tuple[Layer, ...]
    input_kind: InputKind = "values"
    summary: str = ""
    pad_id: int | None = None
    batch_statistics: bool = False
    divides_positions: bool = False

    @cached_property
    def boundaries(self) -> tuple[Shapes, ...]:
        """Shapes of one sample before each layer, and after the last.

        Raises:
            ConfigError: layers do not fit each other or the data.
        """
        shapes: list[Shapes] = [(self.data.input_shape,)]
        for layer in self.layers:
            shapes.append(layer.output(shapes[-1]))
        return tuple(shapes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output."""
        return self.boundaries[-1][0]

    def for_samples(self, input_shape: tuple[int, ...]) -> ModelSpec:
        """Return the same layers for samples of another shape. Local.

        Raises:
            ConfigError: the layers cannot take them.
        """
        model = replace(self, data=replace(self.data, input_shape=input_shape))
        _ = model.boundaries
        return model

    @cached_property
    def costs(self) -> tuple[int, ...]:
        """Multiply-adds of each layer for one sample."""
        return tuple(layer.cost(shapes) for layer, shapes in zip(self.layers, self.boundaries[:-1], strict=True))

    @property
    def max_stages(self) -> int:
        """Most pipeline stages."""
        return len(self.layers)

    @cached_property
    def max_shards(self) -> int:
        """Most shards: as many as still hold something of every divided parameter; 1 where none is divided."""
        limits = [spec.max_shards for spec in self.parameters if spec.max_shards is not None]
        return min(limits, default=1)

    @cached_property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """All parameters in the order of the layers, each once.

        Raises:
            ConfigError: two layers declare one name differently.
        """
        found: dict[str, ParameterSpec] = {}
        for layer in self.layers:
            for spec in layer.parameters:
                known = found.setdefault(spec.name, spec)
                if (known.shape, known.split_dim, known.split_unit) != (spec.shape, spec.split_dim, spec.split_unit):
                    raise ConfigError(
                        f"family {self.family}: the layers declare the parameter {spec.name} once with shape {known.shape} and "
                        f"split {known.split_dim}, once with {spec.shape} and {spec.split_dim}: shared ones need one declaration"
                    )
        return tuple(found.values())

    @property
    def num_parameters(self) -> int:
        """Number of values of all weights, running statistics not counted."""
        return sum(math.prod(spec.shape) for spec in self.parameters if spec.role == "weight")


class Family(ABC):
    """A model family: reads the sizes that a configuration gives and declares a model.

    Attributes:
        tasks: names of the tasks it can do, the usual one first.
        input_kind: what its first layer takes.
        context: tokens a sample where `model.context` is 0; 0 for families that do not read sequences.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    input_kind: ClassVar[InputKind] = "values"
    context: ClassVar[int] = 0

    @abstractmethod
    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape. Local, pure.

        Args:
            config: section [model]; 0 and "" stand for the family's usual choice.
            task: one of `tasks`.
            data: what the data look like.

        Raises:
            ConfigError: sizes that do not fit; names the keys.
        """
