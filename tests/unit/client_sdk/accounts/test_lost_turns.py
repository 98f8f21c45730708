"""Two identities took turns over one data set, and the record of the data is lost.

Each folder knows its own charges alone. A count of those would give a part again before the pass is
over.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from client_sdk.errors import PolicyRefusal, StateError
from client_sdk.network.server_time import CLOCK_WRONG_S
from client_sdk.rounds.schedule import count_of
from secagg.manifest import Manifest
from tests.kits.contributing import Setting
from tests.kits.data_accounts import NOW_S, Folder
from tests.kits.device import make_manifest
from tests.kits.scheduled import SCHEDULED, VERIFIER, scheduled_spec

A, B = (letter * 32 for letter in (b"a", b"b"))


def count(
    folder: Folder, tmp_path: Path, manifest: Manifest = SCHEDULED, **how: bool
) -> int | None:
    device = Setting(tmp_path / "any").device
    device.account = folder.open(**how)
    return count_of(device, manifest)


def lose_record(tmp_path: Path) -> None:
    for path in (tmp_path / "registry").iterdir():
        path.unlink()


def took_turns(tmp_path: Path) -> tuple[Folder, Folder]:
    first, second = Folder(tmp_path / "first"), Folder(tmp_path / "second")
    first.open().debit(SCHEDULED, A, "a", part=0)
    second.open().debit(SCHEDULED, B, "b", part=1)
    first.open()  # and sees the other one's charge
    lose_record(tmp_path)
    return first, second


def test_a_count_that_lost_the_others_charges_gives_no_part(tmp_path: Path) -> None:
    first, second = took_turns(tmp_path)
    with pytest.raises(StateError, match="data-account-missing"):
        first.open()
    with pytest.raises(PolicyRefusal) as caught:
        count(first, tmp_path, renew=True)
    assert caught.value.reason == "turns-lost"
    assert "newer task" in str(caught.value.remedy)
    for folder, renew in ((second, True), (first, False)):
        with pytest.raises(PolicyRefusal, match="turns-lost"):
            count(folder, tmp_path, renew=renew)


def test_newer_tasks_and_those_without_a_schedule_are_served(tmp_path: Path) -> None:
    first, _ = took_turns(tmp_path)
    first.open(renew=True)
    after_s = int(NOW_S + CLOCK_WRONG_S)
    newer = msgspec.structs.replace(SCHEDULED, created_at=after_s + 1)
    assert count(first, tmp_path, newer) == 0
    with pytest.raises(PolicyRefusal, match="turns-lost"):
        count(first, tmp_path, msgspec.structs.replace(SCHEDULED, created_at=after_s))
    plain = make_manifest(scheduled_spec(period=1), VERIFIER)
    assert count(first, tmp_path, plain) is None


def test_a_folder_that_had_all_charges_itself_goes_on(tmp_path: Path) -> None:
    alone = Folder(tmp_path / "alone")
    alone.open().debit(SCHEDULED, A, "a", part=0)
    alone.open()
    lose_record(tmp_path)
    assert count(alone, tmp_path, renew=True) == 1
    assert alone.open().data.renewed == 1  # type: ignore[union-attr]


def test_a_record_that_does_not_open_may_have_had_any_charge(tmp_path: Path) -> None:
    """Also for a folder that never saw it."""
    first, second = Folder(tmp_path / "first"), Folder(tmp_path / "second")
    first.open().debit(SCHEDULED, A, "a", part=0)
    (record,) = (path for path in (tmp_path / "registry").iterdir() if len(path.name) == 32)
    record.write_bytes(b"not a record")
    with pytest.raises(PolicyRefusal, match="turns-lost"):
        count(second, tmp_path, renew=True)
