"""The summary and its JSON."""

from __future__ import annotations

import json
import math
import platform

import h5py
import mpi4py
import numpy as np
import pytest

import lepton_mpi
from lepton_mpi.monitor import summary as summary_module
from lepton_mpi.monitor.classification import classification_metrics
from lepton_mpi.monitor.json_text import format_json
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.monitor.summary import GridSizes, Summary, Versions, collect_versions

VERSIONS = Versions(lepton_mpi="0.1", python="3.11", numpy="2", mpi4py="4", mpi="Open MPI", h5py="3")


def make_summary(train_loss: float) -> Summary:
    return Summary(
        status="finished",
        step=120,
        epoch=1.5,
        train_loss=train_loss,
        eval=Evaluation({"accuracy": 0.875, "loss": 0.5}, classification_metrics(np.array([[3, 1], [0, 4]]))),
        stopped_early=False,
        best=math.nan,
        weights_sha256="ab12",
        grid=GridSizes(data=2, stages=1, shards=2),
        samples_per_second=1000.0,
        data_wait_share=0.25,
        wall_seconds=9.5,
        versions=VERSIONS,
    )


def test_the_json_holds_every_field() -> None:
    text = make_summary(0.25).to_json()
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "status": "finished",
        "step": 120,
        "epoch": 1.5,
        "train_loss": 0.25,
        "eval": {
            "accuracy": 0.875,
            "loss": 0.5,
            "per_class": [
                {"precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7), "support": 4},
                {"precision": 0.8, "recall": 1.0, "f1": pytest.approx(8 / 9), "support": 4},
            ],
        },
        "stopped_early": False,
        "best": None,
        "weights_sha256": "ab12",
        "grid": {"data": 2, "stages": 1, "shards": 2},
        "samples_per_second": 1000.0,
        "data_wait_share": 0.25,
        "wall_seconds": 9.5,
        "versions": {"lepton_mpi": "0.1", "python": "3.11", "numpy": "2", "mpi4py": "4", "mpi": "Open MPI", "h5py": "3"},
    }


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_null(loss: float) -> None:
    assert json.loads(make_summary(loss).to_json(), parse_constant=pytest.fail)["train_loss"] is None


def test_arrays_tuples_and_numpy_numbers_become_plain_json() -> None:
    value = {"a": np.array([[1.0, np.nan]]), 3: (np.float32(0.5), np.bool_(True), None, "é"), "n": np.int64(-1)}
    assert format_json(value) == '{"a": [[1.0, null]], "3": [0.5, true, null, "é"], "n": -1}'


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        format_json({"a": object()})


def test_versions_are_those_that_run() -> None:
    expected = Versions(
        lepton_mpi.__version__, platform.python_version(), np.__version__, mpi4py.__version__, "Open MPI v5", h5py.__version__
    )
    assert collect_versions("Open MPI v5") == expected


def test_a_package_without_metadata_has_an_unknown_version() -> None:
    assert summary_module._installed_version("no-such-package-as-this") == "unknown"
