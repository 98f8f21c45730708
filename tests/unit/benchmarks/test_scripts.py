"""The scripts in ``benchmarks/`` still measure what they say."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


def script(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dropped", [0, 3])
def test_our_side_of_the_comparison_opens_the_true_sum(dropped: int) -> None:
    flower = script("against_flower")
    case = {"clients": 10, "degree": 6, "length": 500, "dropped": dropped}
    measured = flower.measure(flower.Ours, case)
    assert measured["upload_bytes"] == 500 * 4
    assert measured["server_s"] > 0


def test_a_wrong_sum_ends_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    flower = script("against_flower")
    honest = flower.Ours.server
    monkeypatch.setattr(flower.Ours, "server", lambda *arguments: honest(*arguments) + np.uint32(1))
    with pytest.raises(SystemExit, match="wrong"):
        flower.measure(flower.Ours, {"clients": 6, "degree": 4, "length": 50, "dropped": 1})


def test_a_sample_counts_for_the_innermost_frame_of_the_project() -> None:
    from secagg import ring

    sampling = script("sampling")
    seen: list[str] = []

    class Probe(np.ndarray):
        def __array_finalize__(self, _: object) -> None:
            seen.append(sampling._place(sys._getframe()))

    ring.centred(np.zeros(3, "<u4").view(Probe), 24)
    assert "secagg/ring.py:centred" in seen


@pytest.mark.parametrize(("devices", "apart"), [(20, False), (260, True)])
def test_the_ledger_s_lists_are_measured_on_a_ledger_that_verifies(
    devices: int, apart: bool
) -> None:
    measured = script("ledger").measure(devices, 2)
    assert measured["list_bytes"] == (33 * devices if apart else 0)
    assert measured["record_bytes"] < 2_500


def test_bytes_of_a_release_are_counted_on_real_files_and_messages() -> None:
    from benchmarks import communication

    manifest = communication.manifest_of("tiny", "ffa-lora", "fedsgd", "distributed", 6)
    with tempfile.TemporaryDirectory() as folder:
        down = communication.downloads(manifest, Path(folder))
    assert down.from_previous < down.from_nothing < down.whole / 3
    assert down.whole < communication.plain_bytes("tiny")
    small, large = communication.messages(3), communication.messages(5)
    assert (small.neighbours, large.neighbours) == (2, 4)
    assert 3_000 < small.up < large.up < large.down
