"""The help text and the digest of a section."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from lepton_mpi.config.digest import section_digest
from lepton_mpi.config.help_text import format_help
from lepton_mpi.config.keys import list_keys
from lepton_mpi.config.schema import ModelConfig, TrainConfig


def test_help_tells_every_key_with_what_it_admits_its_default_and_its_text() -> None:
    text = " ".join(format_help().split())
    for members in list_keys().values():
        for key in members.values():
            assert f"--{key.full_name}: {key.expectation()}; default " in text
            assert " ".join(key.text.split()) in text
    assert "--model.hidden_sizes: a list of integers of at least 1; default [1000, 512, 256, 128]" in text
    assert '--run.device: one of cpu, gpu; default "cpu"' in text


def test_help_is_at_most_100_columns_wide_and_names_the_program() -> None:
    lines = format_help("train-it").splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("usage: train-it [config.toml]")


def test_the_digest_tells_sections_apart_and_equal_ones_not() -> None:
    assert section_digest(ModelConfig()) == section_digest(ModelConfig())
    assert section_digest(ModelConfig()) != section_digest(replace(ModelConfig(), hidden_sizes=(1000, 512, 256)))
    assert section_digest(TrainConfig()) != section_digest(replace(TrainConfig(), seed=1))


def test_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "from lepton_mpi.config.digest import section_digest; from lepton_mpi.config.schema import ModelConfig;"
        "import sys; sys.stdout.write(section_digest(ModelConfig()))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout == section_digest(ModelConfig()) and len(other.stdout) == 64
