"""Parameter groups: what patterns change, in which order, and what is refused."""

from __future__ import annotations

import pytest

from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.parameter import ParameterSpec
from lepton_mpi.optim.groups import ParameterGroup, assign_groups

SPECS = (
    ParameterSpec("embed.weight", (5, 3)),
    ParameterSpec("blocks.0.weight", (3, 3)),
    ParameterSpec("blocks.0.bias", (3,), decay=False),
    ParameterSpec("blocks.1.weight", (3, 3)),
)


def groups(**settings: object) -> dict[str, ParameterGroup]:
    return assign_groups(OptimizerConfig(weight_decay=0.1, **settings), SPECS)  # type: ignore[arg-type]


def test_without_groups() -> None:
    found = groups()
    assert found["embed.weight"] == ParameterGroup(1.0, 0.1)
    assert found["blocks.0.bias"] == ParameterGroup(1.0, 0.0)  # as its layer says


def test_later_groups_win() -> None:
    found = groups(groups=("blocks.*: lr=0.5", "blocks.0.*: lr=0.1, weight_decay=0.3", "*.bias: weight_decay=0"))
    assert found["embed.weight"] == ParameterGroup(1.0, 0.1)
    assert found["blocks.1.weight"] == ParameterGroup(0.5, 0.1)
    assert found["blocks.0.weight"] == ParameterGroup(0.1, 0.3)
    assert found["blocks.0.bias"] == ParameterGroup(0.1, 0.0)


def test_freezing_and_exemptions() -> None:
    found = groups(groups=("embed.*: weight_decay=0.5",), no_decay=("embed.*",), freeze=("blocks.[0]*",))
    assert found["embed.weight"].weight_decay == 0.0
    assert [name for name, group in found.items() if not group.trained] == ["blocks.0.weight", "blocks.0.bias"]


@pytest.mark.parametrize("key", ["groups", "freeze", "no_decay"])
def test_a_pattern_that_matches_nothing_is_refused(key: str) -> None:
    pattern = "head.*" + (": lr=0.1" if key == "groups" else "")
    with pytest.raises(ConfigError, match=rf"optimizer.{key}: no parameter matches the pattern 'head.\*'; .* embed.weight"):
        groups(**{key: (pattern,)})


@pytest.mark.parametrize(
    "text", ["embed.*", "embed.*:", "embed.*: lr", "embed.*: lr=x", "embed.*: lr=-1", "embed.*: momentum=1", "e: lr=nan"]
)
def test_what_is_no_group_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r'optimizer.groups: expected "PATTERN: lr=FACTOR, weight_decay=NUMBER"'):
        groups(groups=(text,))


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no weight to train"):
        groups(freeze=("*",))
