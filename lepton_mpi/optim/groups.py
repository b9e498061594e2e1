"""Parameter groups: learning rate, weight decay and freezing by patterns of parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.parameter import ParameterSpec

_SETTINGS = ("lr", "weight_decay")


@dataclass(frozen=True)
class ParameterGroup:
    """How one parameter is updated.

    Attributes:
        lr_scale: factor on the learning rate.
        weight_decay: weight decay.
        trained: whether it is updated at all.
    """

    lr_scale: float
    weight_decay: float
    trained: bool = True


def assign_groups(config: OptimizerConfig, specs: Sequence[ParameterSpec]) -> dict[str, ParameterGroup]:
    """Return the group of every parameter, by name. Local, pure.

    Patterns are those of the shell: * stands for anything, ? for one letter, [ab] for one of these.

    Args:
        config: section of the optimizer; `groups` come first, in order, then `no_decay`, then `freeze`.
        specs: all parameters of the model.

    Raises:
        ConfigError: a group cannot be read, a pattern matches no parameter, or everything is frozen.
    """
    groups = {spec.name: ParameterGroup(1.0, config.weight_decay if spec.decay else 0.0) for spec in specs}
    for text in config.groups:
        pattern, changes = _parse_group(text)
        for name in _matches(pattern, groups, "groups"):
            old = groups[name]
            groups[name] = ParameterGroup(changes.get("lr", old.lr_scale), changes.get("weight_decay", old.weight_decay))
    for pattern in config.no_decay:
        for name in _matches(pattern, groups, "no_decay"):
            groups[name] = replace(groups[name], weight_decay=0.0)
    for pattern in config.freeze:
        for name in _matches(pattern, groups, "freeze"):
            groups[name] = replace(groups[name], trained=False)
    if not any(groups[spec.name].trained for spec in specs if spec.role == "weight"):
        raise ConfigError(f"optimizer.freeze: {list(config.freeze)} leaves no weight to train; freeze fewer")
    return groups


def _matches(pattern: str, groups: dict[str, ParameterGroup], key: str) -> list[str]:
    found = [name for name in groups if fnmatchcase(name, pattern)]
    if not found:
        names = list(groups)
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ConfigError(f"optimizer.{key}: no parameter matches the pattern {pattern!r}; parameters are {shown}")
    return found


def _parse_group(text: str) -> tuple[str, dict[str, float]]:
    pattern, colon, settings = text.partition(":")
    changes: dict[str, float] = {}
    for setting in settings.split(","):
        name, equals, number = (part.strip() for part in setting.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not colon or not equals or name not in _SETTINGS or not 0.0 <= value < float("inf"):
            raise ConfigError(
                f'optimizer.groups: expected "PATTERN: lr=FACTOR, weight_decay=NUMBER" with numbers of at least 0 and at least one '
                f"of the two, got {text!r}"
            )
        changes[name] = value
    return pattern.strip(), changes
