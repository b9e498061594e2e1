"""What the command line of `python -m lepton_mpi.train` prints without training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from training_job import Trainer

from lepton_mpi.config.command_line import parse_arguments
from lepton_mpi.config.schema import Config


def test_help_has_every_key_once(train: Trainer) -> None:
    job = train(2, "--help")
    for section in dataclasses.fields(Config):
        for key in dataclasses.fields(getattr(Config(), section.name)):
            assert job.stdout.count(f"  --{section.name}.{key.name}: ") == 1, f"{section.name}.{key.name}"
    assert job.stdout.count("usage: python -m lepton_mpi.train ") == 1
    assert job.stderr == ""
    assert not job.folder.exists()


def test_print_config_can_be_read_again(train: Trainer, tmp_path: Path) -> None:
    options = ["--train.steps", "7", "--model.hidden_sizes", "20,30", "--optimizer.lr", "1e-05", "--run.fresh"]
    job = train(2, *options, "--print-config")
    file = tmp_path / "printed.toml"
    file.write_text(job.stdout)
    assert parse_arguments([str(file)]).config == parse_arguments([*options, "--run.dir", str(job.folder)]).config
    assert job.stderr == ""
    assert not job.folder.exists()


@pytest.mark.parametrize("progress", ["lines", "off"])
def test_progress_as_asked_for(train: Trainer, progress: str) -> None:
    small = ("--model.hidden_sizes", "8", "--train.steps", "30", "--run.progress_every_s", "0.1")
    job = train(1, *small, "--run.progress", progress)
    assert ("step 30/30 (100%)" in job.stdout) == (progress == "lines")
    assert "\r" not in job.stdout
    assert job.stdout.splitlines()[-1].startswith("finished: ")
