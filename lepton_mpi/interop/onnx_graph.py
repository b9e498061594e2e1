"""The nodes of an ONNX graph as plain data; onnx itself is needed only to write them (`onnx_file`).

Names of values begin with a slash, so that none is that of a parameter. Operators are those of opset 17, see
https://github.com/onnx/onnx/blob/main/docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

OPSET: Final = 17
INPUT: Final = "input"
OUTPUT: Final = "output"


@final
@dataclass(frozen=True)
class Node:
    """One operator at work.

    Attributes:
        operator: its name in the standard.
        inputs, outputs: names of values.
        attributes: as the standard calls them.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@final
class OnnxGraph:
    """A graph that layers add their nodes to.

    Values are called by name. Parameters are called as in the model, and need no declaration.

    Attributes:
        nodes: the nodes in order.
        constants: constant arrays by name.
        key_mask: name of bool [B, T], False at padding; None where there is none.
    """

    def __init__(self) -> None:
        """Make a graph without nodes."""
        self.nodes: list[Node] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.key_mask: str | None = None
        self._constant_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._num_values = 0
        # Images that are there with channels first, by the name of their channels-last form; and those of the latter
        # that nobody has asked for yet, so that they have no node.
        self._channels_first: dict[str, str] = {}
        self._unmade: set[str] = set()

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name. Local.

        Args:
            operator: its name in the standard.
            inputs: names of values, parameters and constants.
            attributes: as the standard calls them.
        """
        return self._append(operator, inputs, (self._new_name(operator),), attributes)[0]

    def split(self, x: str, sizes: Sequence[int]) -> tuple[str, ...]:
        """Return the parts of a value along its last dim. Local.

        Args:
            x: name of the value.
            sizes: length of each part.
        """
        outputs = tuple(self._new_name("Split") for _ in sizes)
        return self._append("Split", (x, self.constant(sizes, np.int64)), outputs, {"axis": -1})

    def finish(self, x: str) -> None:
        """Make a value the output of the graph. Local."""
        self._append("Identity", (x,), (OUTPUT,), {})

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant array; equal ones are kept once. Local."""
        array = np.ascontiguousarray(np.asarray(values, dtype)).reshape(np.shape(values))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constant_names:
            name = self._new_name("constant")
            self._constant_names[key] = name
            self.constants[name] = array
        return self._constant_names[key]

    def images(self, x: str) -> str:
        """Return the name of images [B, H, W, C] with their channels first, [B, C, H, W], as ONNX wants them. Local."""
        if x not in self._channels_first:
            self._channels_first[x] = self.add("Transpose", x, perm=(0, 3, 1, 2))
        return self._channels_first[x]

    def from_images(self, images: str) -> str:
        """Return the name of images [B, C, H, W] with their channels last, as layers want them. Local.

        They are transposed only if some node takes them in this form.
        """
        name = self._new_name("Transpose")
        self._channels_first[name] = images
        self._unmade.add(name)
        return name

    def elementwise(self, operator: str, *inputs: str) -> str:
        """Add a node that works element by element on values of one shape, whatever the order of their dims. Local."""
        if all(name in self._channels_first for name in inputs):
            return self.from_images(self.add(operator, *(self._channels_first[name] for name in inputs)))
        return self.add(operator, *inputs)

    def _append(
        self, operator: str, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: Mapping[str, Any]
    ) -> tuple[str, ...]:
        for name in inputs:
            if name in self._unmade:
                self._unmade.remove(name)
                self.nodes.append(Node("Transpose", (self._channels_first[name],), (name,), {"perm": (0, 2, 3, 1)}))
        self.nodes.append(Node(operator, inputs, outputs, dict(attributes)))
        return outputs

    def _new_name(self, what: str) -> str:
        self._num_values += 1
        return f"/{what}_{self._num_values}"
