"""Contributors of large releases: the record stays small, and nobody can be hidden or invented."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import rfc8785
from aiohttp.test_utils import TestClient, TestServer

from aggregator.http.app import SERVICE, build_app
from aggregator.settings.options import Settings
from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.watch import LedgerWatch
from dp.contracts import BudgetSpec, CohortSpec
from dp.errors import LedgerError
from dp.ledger import contributors
from dp.ledger.builder import LedgerBuilder
from dp.ledger.contributors import by_identity, contributors_file, contributors_path
from dp.ledger.findings import AuditResult
from dp.ledger.parsing import parse_record
from dp.ledger.records import ReleaseEntry, identity_digest, release_record
from dp.ledger.verification import verify_ledger
from dp.tlog.tiles import ENTRY_BYTES_MAX
from secagg.manifest import encode_manifest, manifest_digest
from tests.kits.device import journal_in
from tests.kits.receipts import check_receipt
from tests.kits.said import Case, refused
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, served, signed_task

COUNT, INLINE = 100, 50  # the real limit would need a cohort of hundreds
KEYS = [b"%032d" % number for number in range(COUNT)]
LIST = [identity_digest(key) for key in KEYS]
MANIFEST = built(
    privacy="none",
    algorithm="fedavg",
    budget=BudgetSpec(max_epsilon=None),
    cohort=CohortSpec(size_min=COUNT, size_max=COUNT, survivors_min=90),
)
DIGEST = manifest_digest(encode_manifest(MANIFEST))
DATA = contributors_file(LIST)
PATH = contributors_path(hashlib.sha256(DATA).digest())


@pytest.fixture(autouse=True)
def _short_lists_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp.ledger.records.INLINE_MAX", INLINE)


def large(contributors: list[bytes], survivors: int = COUNT) -> ReleaseEntry:
    return msgspec.structs.replace(
        entry(1, survivors, size=COUNT), contributors=tuple(contributors)
    )


def files(contributors: list[bytes] = LIST) -> dict[str, bytes]:
    record = release_record(MANIFEST, DIGEST, [], large(contributors))
    data = contributors_file(contributors)
    path = contributors_path(hashlib.sha256(data).digest())
    return {**served(LedgerBuilder(ORIGIN, [signed_task(MANIFEST), record])), path: data}


def reasons(found: dict[str, bytes]) -> set[str]:
    result: AuditResult = verify_ledger(found.get, VERIFIER)
    return {problem.reason for problem in result.problems}


def test_a_release_of_ten_thousand_fits_into_its_entry() -> None:
    many = [identity_digest(b"%d" % number) for number in range(10_000)]
    record = release_record(MANIFEST, DIGEST, [], large(many))
    assert len(record) < 4_000 < ENTRY_BYTES_MAX
    assert parse_record(record)["contributors"] == []


def test_small_releases_keep_their_list_in_the_record() -> None:
    record = parse_record(release_record(MANIFEST, DIGEST, [], large(LIST[:INLINE], 90)))
    assert len(record["contributors"]) == INLINE
    assert "contributors_digest" not in record


def test_the_auditor_counts_a_list_beside_the_ledger() -> None:
    assert reasons(files()) == set()
    result = verify_ledger(files().get, VERIFIER)
    assert set(result.tasks[0].releases[0].entry.contributors) == set(LIST)


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda found: found.pop(PATH), "contributors-missing"),
        (lambda found: found.update({PATH: DATA[:-32]}), "contributors-digest"),
        (lambda found: found.update({PATH: DATA + bytes(32)}), "contributors-digest"),
        (lambda found: found.update({PATH: b"\xff" + DATA[1:]}), "contributors-digest"),
    ],
)
def test_a_list_that_is_not_the_recorded_one_is_found(
    bend: Callable[[dict[str, bytes]], object], reason: str
) -> None:
    found = files()
    bend(found)
    assert reason in reasons(found)


@pytest.mark.parametrize(
    ("contributors", "reason"),
    [
        (LIST[:-1], "contributors"),  # one hidden
        ([*LIST, b"x" * 32], "contributors"),  # one invented
        ([*LIST[:-1], LIST[0]], "contributors-malformed"),  # one twice
        ([*LIST[:-1], b"short"], "contributors-malformed"),
    ],
)
def test_a_recorded_list_that_lies_is_found(contributors: list[bytes], reason: str) -> None:
    assert reason in reasons(files(contributors))


@pytest.mark.parametrize(
    "changes",
    [
        {"contributors_digest": "AB" * 32},
        {"contributors_digest": 5},
        {"contributors_digest": "ab"},
        {"contributors": [LIST[0].hex()]},
    ],
)
def test_a_record_that_lists_twice_or_wrongly_is_refused(changes: dict[str, object]) -> None:
    record = json.loads(release_record(MANIFEST, DIGEST, [], large(LIST))) | changes
    builder = LedgerBuilder(ORIGIN, [signed_task(MANIFEST), rfc8785.dumps(record)])
    assert reasons({**served(builder), PATH: DATA}) == {"record-malformed"}


class Served:
    def __init__(self, found: dict[str, bytes]) -> None:
        self._files = found

    async def ledger(self, path: str) -> bytes | None:
        return self._files.get(path)


async def receipt(found: dict[str, bytes], key: bytes, folder: Path) -> None:
    async def at_once(seconds: float) -> None:
        pass

    watch = LedgerWatch(Served(found), journal_in(folder), VERIFIER, at_once)  # type: ignore[arg-type]
    await watch.verify_release(
        1,
        task=MANIFEST.task,
        release=1,
        ctx=entry(1).ctx,
        manifest_digest=DIGEST,
        identity_key=key,
    )


async def test_a_device_finds_itself_in_a_list_beside_the_ledger(tmp_path: Path) -> None:
    await receipt(files(), KEYS[7], tmp_path)
    note = files()["checkpoint"]
    asked = {"leaf_index": 1, "remembered": None, "ctx": entry(1).ctx, "contributor": LIST[7]}
    assert check_receipt(files().get, note, VERIFIER, **asked)["release"] == 1
    for found, key in (
        (files(), b"stranger"),
        ({k: v for k, v in files().items() if k != PATH}, KEYS[7]),
        ({**files(), PATH: DATA[32:]}, KEYS[7]),
    ):
        with pytest.raises(LedgerRefusal) as caught:
            await receipt(found, key, tmp_path)
        assert caught.value.reason == "contributor-missing"


async def test_the_service_serves_the_list_and_renders_it_again(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path / "data", operator_token="operator-token")
    record = release_record(MANIFEST, DIGEST, [], large(LIST))
    app = build_app(settings)
    async with TestClient(TestServer(app)) as client:
        service = app[SERVICE]
        service.core.blobs.put_digest("contributors", DATA)
        async with service.core.database.write() as connection:
            await service.ledger.append(connection, [record])
        await service.ledger.publish()
        answer = await client.get(f"/ledger/{PATH}")
        assert (answer.status, await answer.read()) == (200, DATA)
        for wrong in ("contributors/" + "0" * 64, "contributors/..", "contributors/x"):
            assert (await client.get(f"/ledger/{wrong}")).status == 404
        (service.ledger.folder / PATH).unlink()
        await service.ledger.demand_published(everything=True)
        assert (service.ledger.folder / PATH).read_bytes() == DATA


@pytest.mark.parametrize(
    ("version", "first"), [(1, True), (2, False), (True, False), (1.0, False), ("1", False)]
)
def test_a_record_is_of_version_1_if_that_number_is_written(version: object, first: bool) -> None:
    assert by_identity({"version": version}) is first


LISTED = {"contributors": [], "contributors_digest": "ab" * 32}
LIST_DIGEST = bytes.fromhex("ab" * 32)


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


REFUSED = {
    "a list's digest that is a number": Case(
        lambda: contributors.listed(LISTED | {"contributors_digest": 5}), "record-malformed"
    ),
    "a list's digest too short": Case(
        lambda: contributors.listed(LISTED | {"contributors_digest": "ab" * 31}), "record-malformed"
    ),
    "a list's digest in capitals": Case(
        lambda: contributors.listed(LISTED | {"contributors_digest": "AB" * 32}), "record-malformed"
    ),
    "contributors named twice": Case(
        lambda: contributors.listed(LISTED | {"contributors": ["00" * 32]}), "record-malformed"
    ),
    "contributors that are gone": Case(
        lambda: contributors.parse_contributors(None, LIST_DIGEST),
        "contributors-missing",
        "ab" * 32,
    ),
    "contributors of another digest": Case(
        lambda: contributors.parse_contributors(b"", LIST_DIGEST),
        "contributors-digest",
        "ab" * 32,
        digest_of(b"").hex(),
    ),
    "no contributors": Case(
        lambda: contributors.parse_contributors(b"", digest_of(b"")), "contributors-malformed"
    ),
    "contributors of no hex": Case(
        lambda: contributors.members_of({"contributors": ["xy"]}, {}.get), "record-malformed"
    ),
    "a record without contributors": Case(
        lambda: contributors.members_of({}, {}.get), "record-malformed"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)
