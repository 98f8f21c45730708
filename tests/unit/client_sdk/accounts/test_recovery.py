"""What a device writes down from the ledger: its own charges, under the manifest it agreed to."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest
import rfc8785

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.recovery import Recovered, recover
from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.accounting.statements import headline, lines
from dp.ledger.builder import LedgerBuilder
from dp.ledger.contributors import contributors_path, members_file
from dp.ledger.parsing import parse_record
from dp.ledger.records import ReleaseEntry, list_file, policy_record, release_record
from secagg.context import pseudonym
from secagg.http_api import EnrolmentBundle
from secagg.keys import identity_public_key
from secagg.manifest import encode_manifest, manifest_digest
from secagg.secret import Secret
from tests.kits import tasks
from tests.kits.data_accounts import Folder
from tests.kits.device import journal_in
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, listing, served, signed_task

STORED = Path(__file__).parents[3] / "vectors" / "stored-0453a63"
SEED = Secret(b"d" * 32)
KEY = identity_public_key(SEED)
MANIFEST = built()
DELTA = 1e-5


class Served:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    async def ledger(self, path: str) -> bytes | None:
        return self.files.get(path)


async def at_once(seconds: float) -> None:
    pass


def account(folder: Path) -> DeviceAccount:
    return DeviceAccount(journal_in(folder), DELTA)


async def found(
    folder: Path, files: dict[str, bytes], key: bytes = KEY, leaves_max: int = 100
) -> Recovered:
    watch = LedgerWatch(  # type: ignore[arg-type]
        Served(files), journal_in(folder), VERIFIER, at_once, None, SEED
    )
    return await recover(watch, account(folder), key, leaves_max)


def with_me(item: ReleaseEntry) -> ReleaseEntry:
    """The entry with this device in the place of one that is listed."""
    own = pseudonym(SEED, item.ctx)
    if item.contributors:
        return msgspec.structs.replace(item, contributors=(own, *item.contributors[1:]))
    return msgspec.structs.replace(item, not_in_sum=(own, *item.not_in_sum[1:]))


MINE = with_me(tasks.listed(MANIFEST, entry(1, 4)))
CHARGED = with_me(tasks.listed(MANIFEST, entry(2, charged=True)))
NOT_MINE_TOO = tasks.listed(MANIFEST, entry(1, 4))
NOT_MINE = tasks.listed(MANIFEST, entry(3, 5))


async def test_released_and_charged_cohorts_are_found_and_others_are_not(tmp_path: Path) -> None:
    result = await found(tmp_path, served(listing(MANIFEST, [MINE, CHARGED, NOT_MINE])))
    assert (result.charges, result.added, result.leaves) == ({MANIFEST.task: 2}, 2, 4)
    assert result.unlisted == ()
    paid = account(tmp_path / "paid")
    for item in (MINE, CHARGED):
        paid.debit(MANIFEST, item.ctx, "c")
    again = account(tmp_path)
    assert again.epsilon(MANIFEST.task) == paid.epsilon(MANIFEST.task)
    assert again.totals() == paid.totals()
    assert not again.is_new


async def test_an_account_is_never_lowered(tmp_path: Path) -> None:
    """What no ledger shows, because the cohort is open or was never recorded, stays charged."""
    before = account(tmp_path)
    before.debit(MANIFEST, b"o" * 32, "open")
    before.debit(MANIFEST, MINE.ctx, "mine")
    result = await found(tmp_path, served(listing(MANIFEST, [MINE, CHARGED])))
    assert (result.charges, result.added) == ({MANIFEST.task: 2}, 1)
    assert result.unlisted == ((b"o" * 32).hex(),)
    assert account(tmp_path).charges(MANIFEST.task) == 3
    assert account(tmp_path).served("mine") == MINE.ctx


async def test_models_that_a_vector_without_noise_was_given_for_are_found(tmp_path: Path) -> None:
    """So the same data never gives a second vector for one of them."""
    manifest = built(privacy="none", algorithm="fedavg")
    item = with_me(tasks.listed(manifest, entry(1, 4)))
    await found(tmp_path / "none", served(listing(manifest, [item])))
    assert account(tmp_path / "none").given(item.model_digests[0]) == item.ctx
    await found(tmp_path / "noise", served(listing(MANIFEST, [MINE])))
    assert account(tmp_path / "noise").given(MINE.model_digests[0]) is None


async def test_a_new_device_in_an_old_ledger_pays_for_nothing(tmp_path: Path) -> None:
    result = await found(
        tmp_path, served(listing(MANIFEST, [NOT_MINE_TOO, tasks.listed(MANIFEST, entry(2, 5))]))
    )
    assert (result.charges, result.added) == ({}, 0)
    assert not account(tmp_path).is_new  # so it is asked once


async def test_a_list_beside_the_ledger_is_read_and_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp.ledger.records.INLINE_MAX", 5)
    files = served(listing(MANIFEST, [MINE]))
    data = list_file(MINE)
    assert data == members_file(MINE.contributors, MINE.not_in_sum)
    (path,) = {
        contributors_path(bytes.fromhex(str(parse_record(record)["masking_set_file"])))
        for record in listing(MANIFEST, [MINE])._entries[1:]
    }
    with pytest.raises(LedgerRefusal, match="contributor-missing"):
        await found(tmp_path, files)
    assert account(tmp_path).is_new
    assert (await found(tmp_path, {**files, path: data})).added == 1


async def test_a_ledger_of_the_first_version_is_read_by_identity(tmp_path: Path) -> None:
    """Who was in a sum of a task counts its cohorts without a sum too, which list nobody."""
    builder = ledger(MANIFEST, (4, 4))
    facts = [entry(n, 4).facts(MANIFEST) for n in (1, 2)]
    of_manifest = manifest_digest(encode_manifest(MANIFEST))
    builder.append(release_record(MANIFEST, of_manifest, facts, entry(3, charged=True)))
    files = served(builder)
    was_in = await found(tmp_path / "in", files, bytes([1]) * 32)
    assert (was_in.charges, was_in.unlisted) == ({MANIFEST.task: 3}, ())
    assert (await found(tmp_path / "out", files, bytes([5]) * 32)).charges == {}


async def test_what_the_first_version_stored_is_found_from_its_bundle(tmp_path: Path) -> None:
    """The account in its state folder, and the one found from bundle and ledger alone, agree."""
    bundle = msgspec.json.decode((STORED / "bundle.json").read_bytes(), type=EnrolmentBundle)
    state = shutil.copytree(STORED / "state-idle", tmp_path / "stored")
    (state / "storage.key").chmod(0o600)
    before = DeviceAccount(Journal(state, open_storage_key(state)), DELTA)
    files = {
        str(path.relative_to(STORED / "ledger")): path.read_bytes()
        for path in (STORED / "ledger").rglob("*")
        if path.is_file()
    }
    watch = LedgerWatch(  # type: ignore[arg-type]
        Served(files),
        journal_in(tmp_path / "new"),
        bundle.ledger_verifier,
        at_once,
        None,
        Secret(bundle.identity_seed),
    )
    again = account(tmp_path / "new")
    result = await recover(watch, again, bundle.certificate.identity_key)
    assert result.charges == {"stats": 3}
    assert set(again.cohorts()) > set(before.cohorts())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"roster_digest": "ab" * 32}, "release-mismatch"),
        ({"attempt": 1}, "release-mismatch"),
        ({"manifest_digest": "ab" * 32}, "release-mismatch"),
        ({"survivors": "4"}, "release-mismatch"),
        ({"ctx": "xy"}, "release-mismatch"),
        ({"contributors": 5}, "contributor-missing"),
    ],
)
async def test_a_record_that_lists_this_device_and_cannot_be_right_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    """The pseudonym binds the context, the context the manifest: no cheaper task can be shown."""
    task, release = listing(MANIFEST, [MINE])._entries
    bent = rfc8785.dumps({**parse_record(release), **changes})
    with pytest.raises(LedgerRefusal, match=reason):
        await found(tmp_path, served(LedgerBuilder(ORIGIN, [task, bent])))
    assert account(tmp_path).is_new


async def test_what_others_put_into_the_same_sum_is_in_the_figure(tmp_path: Path) -> None:
    """A cohort that two identities of one user were in is more than one charge."""
    first, second = Folder(tmp_path / "first"), Folder(tmp_path / "second")
    first.open().debit(MANIFEST, MINE.ctx, "c")
    shared = second.open()
    watch = LedgerWatch(  # type: ignore[arg-type]
        Served(served(listing(MANIFEST, [MINE]))), second.journal, VERIFIER, at_once, None, SEED
    )
    shown = (await recover(watch, shared, KEY)).epsilons[MANIFEST.task]
    alone = headline(lines(MANIFEST, 1))
    assert shown is not None
    assert alone is not None
    assert shown == shared.epsilon(MANIFEST.task) > 1.5 * alone


async def test_records_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    strange = rfc8785.dumps({"type": "of another day", "version": 9})
    broken_task = rfc8785.dumps({"type": "task", "version": 1, "task": "x"})
    entries = [*listing(MANIFEST, [MINE])._entries, policy_record("demo", "paused", 1)]
    files = served(LedgerBuilder(ORIGIN, [strange, broken_task, *entries]))
    assert (await found(tmp_path, files)).added == 1


async def test_leaves_and_bytes_have_a_limit(tmp_path: Path) -> None:
    files = served(listing(MANIFEST, [MINE]))
    assert (await found(tmp_path / "two", files, leaves_max=2)).leaves == 2
    with pytest.raises(LedgerRefusal, match="ledger-too-long"):
        await found(tmp_path / "one", files, leaves_max=1)
    thick = LedgerBuilder(ORIGIN, [signed_task(MANIFEST)])
    for number in range(3):
        thick.append(policy_record("demo", "paused", number, "x" * 60_000))
    with pytest.raises(LedgerRefusal, match="ledger-too-long"):
        await found(tmp_path / "thick", served(thick), leaves_max=4)
    assert (await found(tmp_path / "thick", served(thick), leaves_max=40)).leaves == 4


class Silent(Served):
    """Its last file never comes."""

    async def ledger(self, path: str) -> bytes | None:
        if path != "checkpoint":
            await asyncio.Event().wait()
        return await super().ledger(path)


async def test_a_walk_through_the_ledger_has_one_deadline(tmp_path: Path) -> None:
    files = served(listing(MANIFEST, [MINE]))
    watch = LedgerWatch(  # type: ignore[arg-type]
        Silent(files), journal_in(tmp_path), VERIFIER, at_once, None, SEED, 0.05
    )
    with pytest.raises(LedgerRefusal, match="ledger-deadline"):
        async with asyncio.timeout(20.0):
            await recover(watch, account(tmp_path), KEY)
