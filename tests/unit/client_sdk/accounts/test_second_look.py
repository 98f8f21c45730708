"""A later look at the ledger reads what has come since, however long the ledger is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.recovery import (
    LedgerRead,
    Recovered,
    keep_look,
    plan_second_look,
    recover,
    second_look,
)
from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.rounds.checkin import look_again
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import ReleaseEntry, policy_record, release_record
from dp.schedule import schedule_of
from dp.tlog.merkle import Tree, leaf_hash
from secagg.context import pseudonym
from secagg.keys import identity_public_key
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from secagg.secret import Secret
from tests.kits.contributing import OPENED, Setting
from tests.kits.data_accounts import new_bundle
from tests.kits.device import journal_in
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, listed, served, signed_task

SEED = Secret(b"d" * 32)
KEY = identity_public_key(SEED)
SCHEDULED = built(
    privacy="distributed", algorithm="fedsgd", noise_multiplier=1.0, sampling_rate=1.0, period=4
)
FILLER = 300  # records between the task and the first charge: more than one bundle


class Served:
    """Serves a ledger, and knows what was asked for."""

    def __init__(self, log: LedgerBuilder) -> None:
        self.files = served(log)
        self.reads: list[str] = []

    async def ledger(self, path: str) -> bytes | None:
        self.reads.append(path)
        return self.files.get(path)

    @property
    def bundles(self) -> list[str]:
        return [path for path in self.reads if path.startswith("tile/entries/")]


async def at_once(seconds: float) -> None:
    pass


def charge(manifest: Manifest, number: int, seed: Secret = SEED) -> bytes:
    item = listed(manifest, entry(number, 4))
    own = pseudonym(seed, item.ctx)
    item = msgspec.structs.replace(item, contributors=tuple(sorted((own, *item.contributors[1:]))))
    return record_of(manifest, number, item)


def record_of(manifest: Manifest, number: int, item: ReleaseEntry) -> bytes:
    facts = [entry(n, 4).facts(manifest) for n in range(1, number)]
    return release_record(manifest, manifest_digest(encode_manifest(manifest)), facts, item)


def filler(count: int, since: int = 0) -> list[bytes]:
    return [policy_record("demo", "paused", 1_700_000_000 + since + n) for n in range(count)]


BEFORE = [signed_task(SCHEDULED), *filler(FILLER)]
FIRST, SECOND = charge(SCHEDULED, 1), charge(SCHEDULED, 2)


def watch(folder: Path, shown: Served) -> LedgerWatch:
    return LedgerWatch(  # type: ignore[arg-type]
        shown, journal_in(folder), VERIFIER, at_once, None, SEED
    )


async def looked(
    folder: Path, shown: Served, leaves_max: int = 1_000, read: LedgerRead | None = None
) -> Recovered:
    account = DeviceAccount(journal_in(folder), 1e-5)
    return await recover(watch(folder, shown), account, KEY, leaves_max, read)


async def test_it_reads_what_has_come_since(tmp_path: Path) -> None:
    """The limit is for what is read now, and a manifest of before is found by its leaf."""
    first = await looked(tmp_path, Served(LedgerBuilder(ORIGIN, BEFORE)))
    assert (first.added, first.leaves) == (0, 1 + FILLER)
    with pytest.raises(LedgerRefusal, match="ledger-too-long"):
        await looked(tmp_path, Served(LedgerBuilder(ORIGIN, [*BEFORE, FIRST])), leaves_max=1)
    shown = Served(LedgerBuilder(ORIGIN, [*BEFORE, FIRST]))
    second = await looked(tmp_path, shown, leaves_max=1, read=first.read)
    assert (second.charges, second.added, second.leaves) == ({"demo": 1}, 1, 1)
    assert second.unlisted == ()
    assert second.cohort_max_s == first.cohort_max_s > 0
    # the last bundle for the record, the first for the task's manifest
    assert shown.bundles == ["tile/entries/001.p/46", "tile/entries/000"]
    third = await looked(
        tmp_path, Served(LedgerBuilder(ORIGIN, [*BEFORE, FIRST, SECOND])), 1, second.read
    )
    assert (third.added, third.leaves) == (1, 1)
    assert DeviceAccount(journal_in(tmp_path), 1e-5).charged(schedule_of(SCHEDULED)) == 2


async def test_what_has_not_grown_is_not_read(tmp_path: Path) -> None:
    log = LedgerBuilder(ORIGIN, [*BEFORE, FIRST])
    first = await looked(tmp_path, Served(log))
    shown = Served(log)
    again = await looked(tmp_path, shown, 0, first.read)
    assert (again.added, again.leaves, again.read) == (0, 0, first.read)
    assert shown.bundles == []


@pytest.mark.parametrize("size", [0, 1, 200, 301, 302])
async def test_a_log_that_is_not_the_one_that_was_read_is_refused(
    tmp_path: Path, size: int
) -> None:
    """Also where the remembered checkpoint is gone: what was read is remembered by its hashes."""
    first = await looked(tmp_path / "first", Served(LedgerBuilder(ORIGIN, BEFORE)))
    other = [*BEFORE[:-1], *filler(2, since=9_000)][:size]
    with pytest.raises(LedgerRefusal, match="ledger-forked"):
        await looked(tmp_path / "second", Served(LedgerBuilder(ORIGIN, other)), read=first.read)


async def test_what_was_read_of_another_ledger_counts_for_nothing(tmp_path: Path) -> None:
    first = await looked(tmp_path, Served(LedgerBuilder(ORIGIN, [*BEFORE, FIRST])))
    assert first.read is not None
    other = msgspec.structs.replace(first.read, ledger="another")
    again = await looked(tmp_path, Served(LedgerBuilder(ORIGIN, [*BEFORE, FIRST])), read=other)
    assert again.leaves == 2 + FILLER


async def test_how_far_it_came_is_kept_with_the_plan(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    first = await looked(tmp_path, Served(LedgerBuilder(ORIGIN, [*BEFORE, FIRST])))
    assert first.read is not None
    tree = Tree([leaf_hash(record) for record in [*BEFORE, FIRST]])
    assert first.read.size == tree.size
    assert first.read.hashes[-1] == leaf_hash(FIRST) or tree.size % 2 == 0
    assert first.read.tasks == {manifest_digest(encode_manifest(SCHEDULED)): 0}
    plan_second_look(journal, OPENED + 60, restored=False, read=first.read)
    look = second_look(journal_in(tmp_path))
    assert look is not None
    assert look.read == first.read


async def test_a_cohort_of_the_first_version_that_lists_nobody_counts_for_a_task_of_the_account(
    tmp_path: Path,
) -> None:
    """Whether the device was in a sum of that task is not read again."""
    manifest = built()
    builder = ledger(manifest, (4, 4))
    own = bytes([1]) * 32

    async def look(read: LedgerRead | None) -> Recovered:
        account = DeviceAccount(journal_in(tmp_path), 1e-5)
        return await recover(watch(tmp_path, Served(builder)), account, own, 100, read)

    first = await look(None)
    assert first.charges == {"demo": 2}
    builder.append(record_of(manifest, 3, entry(3, charged=True)))
    assert (await look(first.read)).charges == {"demo": 1}


class TestATaskWithASchedule:
    def setting(self, folder: Path, shown: Served) -> Setting:
        setting = Setting(folder)
        setting.device.ledger = watch(folder, shown)
        setting.device.bundle = msgspec.structs.replace(new_bundle(), identity_seed=SEED.reveal())
        return setting

    async def test_a_check_in_leaves_the_debit_what_has_come_since(self, tmp_path: Path) -> None:
        """Else a ledger that is too long would be found so when others wait for this device."""
        setting = self.setting(tmp_path, Served(LedgerBuilder(ORIGIN, BEFORE)))
        plan_second_look(setting.device.journal, OPENED + 60, restored=False)
        await look_again(setting.device, SCHEDULED, debits=False)
        look = second_look(setting.device.journal)
        assert look is not None
        assert (look.looked, look.read and look.read.size) == ((), 1 + FILLER)
        shown = Served(LedgerBuilder(ORIGIN, [*BEFORE, FIRST]))
        setting.device.ledger = watch(tmp_path, shown)
        await look_again(setting.device, SCHEDULED, debits=True)
        assert shown.bundles == ["tile/entries/001.p/46", "tile/entries/000"]
        assert setting.device.account.charged(schedule_of(SCHEDULED)) == 1
        assert [(e.kind, e.detail) for e in setting.events] == [("recovered", {"charges": 1})]
        after = second_look(setting.device.journal)
        assert after is not None
        assert (after.due_s, after.restored) == (OPENED + 60, False)
        assert after.looked == (schedule_of(SCHEDULED),)
        shown.reads.clear()
        await look_again(setting.device, SCHEDULED, debits=True)
        assert shown.reads == []

    async def test_nothing_is_written_where_nothing_has_come(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        setting = self.setting(tmp_path, Served(LedgerBuilder(ORIGIN, BEFORE)))
        plan_second_look(setting.device.journal, OPENED + 60, restored=False)
        await look_again(setting.device, SCHEDULED, debits=False)
        written: list[object] = []
        monkeypatch.setattr(
            "client_sdk.rounds.schedule.keep_look", lambda _, look: written.append(look)
        )
        await look_again(setting.device, SCHEDULED, debits=False)
        assert written == []


def test_a_plan_of_before_is_readable(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.save_blob("second-look", msgspec.msgpack.encode({"due_s": 5.0, "restored": False}))
    look = second_look(journal)
    assert look is not None
    assert look.read is None
    keep_look(journal, look)
    assert second_look(journal) == look
