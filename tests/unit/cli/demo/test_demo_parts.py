"""Parts of the demo that need no process."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from client_sdk.errors import OutputError
from dp.accounting.statements import NoiseKind, PrivacyStatement
from secagg_cli.background import Background
from secagg_cli.demo.folder import check_folder, claim_folder
from secagg_cli.demo.memory import MemoryMeter, pss_bytes
from secagg_cli.demo.summary import epsilon_by_mode


def test_every_run_gets_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [claim_folder(None).name for _ in range(3)]
    assert names == ["secagg-demo", "secagg-demo-2", "secagg-demo-3"]
    assert claim_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(OutputError, match="out-not-empty"):
        check_folder(tmp_path)
    with pytest.raises(OutputError, match="out-not-empty"):
        claim_folder(tmp_path / "mine")


def test_the_memory_meter_adds_up_processes_and_forgets_the_dead() -> None:
    with MemoryMeter(lambda: [os.getpid(), 2**22 + 1], interval_s=60) as meter:
        meter.sample()
    own = pss_bytes(os.getpid())
    assert own is not None
    assert meter.peak_bytes is not None
    assert 1.5 * own < meter.peak_bytes < 3 * own


def test_a_mode_that_is_not_in_use_has_no_epsilon() -> None:
    line = PrivacyStatement(
        mode=NoiseKind.DISTRIBUTED,
        unit="device",
        adversary="all who see the releases",
        adjacency="zero-out",
        amplified=False,
        accountant="rdp",
        epsilon=7.0,
        delta=1e-6,
    )
    amplified = replace(line, amplified=True, epsilon=2.0)
    device = replace(line, mode=NoiseKind.DEVICE_LEVEL, epsilon=0.5)
    assert epsilon_by_mode([line, amplified, device]) == {
        "local": None,
        "device": 0.5,
        "distributed": 7.0,
    }


def test_an_error_in_the_background_is_raised_where_the_result_is_asked_for() -> None:
    def fail() -> int:
        raise ValueError("lost")

    assert Background(lambda: 3).result() == 3
    with pytest.raises(ValueError, match="lost"):
        Background(fail).result()
