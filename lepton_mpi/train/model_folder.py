"""A folder with one model: its configuration and one checkpoint, as `LeptonModel.save` and the best evaluation leave it."""

from __future__ import annotations

from pathlib import Path

from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.retention import remove_checkpoint
from lepton_mpi.config.schema import Config
from lepton_mpi.config.toml_file import format_toml
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.whole_file import sync


def complete_model_folder(folder: Path, written: Path, config: Config) -> None:
    """Put the configuration beside a new checkpoint and remove older ones, which could pass for newer. Local, on rank 0.

    Args:
        folder: the model's folder; the checkpoint lies in its `checkpoints`.
        written: the new checkpoint.
        config: the configuration it belongs to.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        draft = folder / ".config.toml.tmp"
        draft.write_text(format_toml(config), encoding="utf-8")
        sync(draft)
        draft.replace(folder / "config.toml")
        sync(folder)  # before the older checkpoint goes
        for path in list_checkpoints(folder / "checkpoints"):
            if path.name != written.name:
                remove_checkpoint(path)
    except OSError as error:
        raise CheckpointError(f"cannot complete {folder}: {error}; check free space, quota and permissions there") from error
