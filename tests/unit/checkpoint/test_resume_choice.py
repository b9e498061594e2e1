"""Which checkpoint a run goes on from: damaged ones are passed over aloud, those of a newer version are not."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from lepton_mpi.checkpoint import manifest
from lepton_mpi.checkpoint.layout import MANIFEST_FILE, TensorSlice
from lepton_mpi.checkpoint.resume import find_resumable
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.errors import CheckpointError, FormatVersionError

LOG = logging.getLogger("resume_choice")


@pytest.fixture
def checkpoints(comm, tmp_path):
    slices = [TensorSlice("/param/w", (9,), (0,), np.arange(9.0))]
    return [write_checkpoint(comm, tmp_path, step, slices, {}, "direct") for step in (1, 2, 3)]


def rewrite(path, digest, **changes):
    """Change a manifest, with or without a digest that fits."""
    body = {**json.loads((path / MANIFEST_FILE).read_text()), **changes}
    stated = body.pop("sha256")
    stated = manifest._digest(body) if digest else stated
    (path / MANIFEST_FILE).write_text(manifest._format({**body, "sha256": stated}))


def test_one_of_a_newer_version_is_not_passed_over(comm, checkpoints):
    rewrite(checkpoints[2], True, format_major=9)
    with pytest.raises(FormatVersionError, match=r"version 9, but this lepton_mpi reads .*use the version that wrote it"):
        find_resumable(comm, checkpoints[0].parent, LOG)


def test_a_version_number_that_was_altered_is_damage(comm, checkpoints, caplog):
    rewrite(checkpoints[2], False, format_major=9)
    damaged = {}
    assert find_resumable(comm, checkpoints[0].parent, LOG, damaged) == checkpoints[1]
    assert list(damaged) == ["step-000000003"]
    assert "step-000000003 IS DAMAGED and is passed over for an older one" in caplog.text
    assert damaged["step-000000003"] in caplog.text


def test_a_newer_minor_version_is_read(comm, checkpoints):
    rewrite(checkpoints[2], True, format_minor=77, something_new=[1, 2])
    assert find_resumable(comm, checkpoints[0].parent, LOG) == checkpoints[2]


def test_all_damaged(comm, checkpoints):
    damaged = {}
    for path in checkpoints:
        rewrite(path, False, step=99)
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints can be used"):
        find_resumable(comm, checkpoints[0].parent, LOG, damaged)
    assert len(damaged) == 3
