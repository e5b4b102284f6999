"""Every entry point on a device that refuses to mix with the CPU, and on two such devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.devices.entry_points import WORK

ROOT = Path(__file__).resolve().parents[2]
#: Largest |difference|: the second device multiplies matrices in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def results(
    tiny_folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("second") / "results.json"
    command = [sys.executable, "-m", "tests.devices.on_second_device", *tiny_folders, path]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("placement", ["one device", "two devices"])
def test_a_second_device_gives_the_numbers_of_the_cpu(
    placement: str, name: str, results: dict[str, Any]
) -> None:
    expected, found = (results[where]["results"][name] for where in ("cpu", placement))
    assert not isinstance(expected, str), expected
    assert not isinstance(found, str), found
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_models_were_where_they_were_asked_to_be(results: dict[str, Any]) -> None:
    assert results["cpu"]["devices"] == ["cpu"]
    assert results["one device"]["devices"] == ["second:0"]
    assert results["two devices"]["devices"] == ["second:0", "second:1"]


def test_the_second_device_refuses_to_mix(results: dict[str, Any]) -> None:
    with_cpu, with_third, as_array = results["mixing"]
    assert "found ['cpu', 'second:0']" in with_cpu
    assert "found ['second:0', 'second:1']" in with_third
    assert "numpy" in as_array
