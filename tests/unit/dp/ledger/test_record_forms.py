"""Records have forms and an order; what honest records of before could not meet is not forged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import nacl.signing
import pytest
import rfc8785

from dp.errors import LedgerError
from dp.ledger import parsing, records
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.forms import TEXT_MAX, TIME_MAX_S
from dp.ledger.records import membership_record, release_record
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from dp.tlog.notes import (
    checkpoint_body,
    key_id,
    signature_line,
    verifier_key,
)
from dp.tlog.tiles import TILE_WIDTH
from secagg.manifest import encode_manifest, manifest_digest
from tests.kits import tasks
from tests.kits.rotations import key_rotation_record
from tests.kits.said import Case, refused
from tests.kits.tasks import (
    ORIGIN,
    VERIFIER,
    built,
    entry,
    ledger,
    listed,
    listing,
    served,
    signed_task,
)

STORED = Path(__file__).parents[3] / "vectors" / "stored-0453a63"
MANIFEST = built()
OLD = list(ledger(MANIFEST, (4, 4, 4))._entries)  # releases of version 1
NEW = list(listing(MANIFEST, [listed(MANIFEST, entry(n)) for n in (1, 2, 3)])._entries)
VERSIONS = pytest.mark.parametrize("entries", [OLD, NEW], ids=["version 1", "version 2"])
AT = 1_700_000_100


def audited(entries: list[bytes]) -> AuditResult:
    return verify_ledger(served(LedgerBuilder(ORIGIN, entries)).get, VERIFIER)


def edited(entries: list[bytes], leaf: int, **changes: Any) -> list[bytes]:
    record = {**json.loads(entries[leaf]), **changes}
    return [*entries[:leaf], rfc8785.dumps(record), *entries[leaf + 1 :]]


def of(entries: list[bytes], leaf: int, name: str) -> Any:
    return json.loads(entries[leaf])[name]


def first(result: AuditResult) -> tuple[str, int | None]:
    assert result.problems, "nothing was found"
    return result.problems[0].reason, result.problems[0].leaf


def policy(**fields: Any) -> bytes:
    return rfc8785.dumps({"type": "policy", "version": 1, "task": "demo", **fields})


@VERSIONS
def test_the_ledgers_to_be_changed_are_honest(entries: list[bytes]) -> None:
    assert audited(entries).problems == ()


CHANGES: dict[str, tuple[int, Callable[[list[bytes]], dict[str, Any]], str]] = {
    "an unknown field": (2, lambda _: {"purpose": "You are safe."}, "record-field-unknown"),
    "an unknown field of a task": (0, lambda _: {"certified": True}, "record-field-unknown"),
    "an empty sum": (2, lambda _: {"sum_digest": ""}, "sum-missing"),
    "a short sum": (2, lambda _: {"sum_digest": "00"}, "record-malformed"),
    "a sum in capitals": (2, lambda _: {"sum_digest": "AB" * 32}, "record-malformed"),
    "a sum with spaces": (2, lambda _: {"sum_digest": "ab " * 32}, "record-malformed"),
    "a sum twice": (2, lambda e: {"sum_digest": of(e, 1, "sum_digest")}, "sum-repeated"),
    "no model": (3, lambda _: {"new_model_digest": ""}, "sum-missing"),
    "the model before": (
        3,
        lambda e: {"new_model_digest": of(e, 3, "model_digests")[0]},
        "model-repeated",
    ),
    "an older model": (
        3,
        lambda e: {"new_model_digest": of(e, 1, "new_model_digest")},
        "model-repeated",
    ),
    "1970": (2, lambda _: {"released_at": 0}, "time-order"),
    "before its task": (1, lambda _: {"released_at": 1_699_999_999}, "time-order"),
    "before the last": (2, lambda e: {"released_at": of(e, 1, "released_at") - 1}, "time-order"),
    "a negative time": (2, lambda _: {"released_at": -1}, "record-malformed"),
    "a time beyond calendars": (2, lambda _: {"released_at": 2**53 - 1}, "record-malformed"),
    "the last year": (2, lambda _: {"released_at": 253402300799}, "record-malformed"),
    "just too late": (2, lambda _: {"released_at": TIME_MAX_S + 1}, "record-malformed"),
    "a time that is true": (2, lambda _: {"released_at": True}, "record-malformed"),
    "an interval upside down": (
        2,
        lambda _: {"measured_variance": ["99999999999999999999", "13153337400"]},
        "record-malformed",
    ),
    "400 digits": (
        2,
        lambda _: {"measured_variance": ["0", "1" + "0" * 400]},
        "record-malformed",
    ),
    "5000 digits": (
        2,
        lambda _: {"measured_variance": ["0", "1" + "0" * 5000]},
        "record-malformed",
    ),
    "more than the ring": (
        2,
        lambda _: {"measured_variance": ["0", str(4**MANIFEST.encoding.ring_bits + 1)]},
        "noise-measured-impossible",
    ),
    "a negative variance": (2, lambda _: {"measured_variance": ["-1", "9"]}, "record-malformed"),
    "a variance with a zero before": (
        2,
        lambda _: {"measured_variance": ["0", "0" + str(10**12)]},
        "record-malformed",
    ),
    "a creation in no calendar": (0, lambda _: {"created_at": 2**53 - 1}, "record-malformed"),
    "a task's digest in capitals": (
        0,
        lambda e: {"manifest_digest": of(e, 0, "manifest_digest").upper()},
        "record-malformed",
    ),
    "a first model of one byte": (0, lambda _: {"model_digest": "00"}, "record-malformed"),
    "a manifest with stray bits": (
        0,
        lambda e: {"manifest": of(e, 0, "manifest")[:-2] + "/="},
        "record-malformed",
    ),
    "a model of one byte": (2, lambda _: {"model_digests": ["00"]}, "record-malformed"),
    "a context of one byte": (2, lambda _: {"ctx": "00"}, "record-malformed"),
    "no roster": (2, lambda _: {"roster_digest": ""}, "record-malformed"),
    "no cohort": (2, lambda _: {"cohort": ""}, "record-malformed"),
    "a short device": (2, lambda _: {"contributors": ["00", "01", "02", "03"]}, "record-malformed"),
}


@VERSIONS
@pytest.mark.parametrize("name", CHANGES)
def test_a_field_without_its_form_is_found(name: str, entries: list[bytes]) -> None:
    leaf, change, reason = CHANGES[name]
    assert first(audited(edited(entries, leaf, **change(entries)))) == (reason, leaf)


def test_the_bounds_themselves_are_allowed() -> None:
    late = edited(NEW, 3, released_at=TIME_MAX_S)
    most = str(4**MANIFEST.encoding.ring_bits)
    wide = edited(late, 2, measured_variance=["0", most])
    same_second = edited(wide, 2, released_at=of(NEW, 1, "released_at"))
    assert audited(same_second).problems == ()


@pytest.mark.parametrize("depth", [8, 100, 300, 400, 500, 900, 20_000])
@pytest.mark.parametrize("name", ["lines", "contributors", "also"])
def test_a_record_that_nests_deeply_is_a_problem_and_no_crash(name: str, depth: int) -> None:
    """Each function that follows a record gives up at a depth of its own."""
    entry = rfc8785.dumps({**json.loads(NEW[2]), name: 7})
    inner = b"[" * depth + b"]" * depth
    deep = entry.replace(b'"%s":7' % name.encode(), b'"%s":%s' % (name.encode(), inner))
    result = audited([*NEW[:2], deep, NEW[3]])
    assert ("record-malformed", 2) in [(found.reason, found.leaf) for found in result.problems]
    report_data(result)


@pytest.mark.parametrize(
    "cause",
    ["audited and approved by DPA", "\u202ex", "x" * 65, "Too-Few", "too-few\n", " ", "", 5, None],
)
def test_the_cause_of_a_charge_is_a_reason_and_no_free_text(cause: object) -> None:
    """The page shows it as the outcome, not as somebody's words."""
    charged = listed(MANIFEST, entry(2, charged=True), 1, fault="devices", cause="too-few-vectors")
    entries = list(listing(MANIFEST, [listed(MANIFEST, entry(1)), charged])._entries)
    assert audited(entries).problems == ()
    assert first(audited(edited(entries, 2, cause=cause))) == ("record-malformed", 2)


def test_an_unknown_field_hides_no_cost() -> None:
    assert audited(edited(OLD, 2, purpose="x")).epsilon == audited(OLD).epsilon


def test_a_sum_without_noise_may_repeat_and_is_said_to_be_unchecked() -> None:
    free = built(algorithm="fedavg", privacy="none")
    entries = list(listing(free, [listed(free, entry(n)) for n in (1, 2)])._entries)
    result = audited(edited(entries, 2, sum_digest=of(entries, 1, "sum_digest")))
    assert result.verified
    assert ("sum-repeated", 2) in [(f.reason, f.leaf) for f in result.unchecked]


def test_a_measurement_where_there_is_no_noise_is_found() -> None:
    free = built(algorithm="fedavg", privacy="none")
    entries = list(listing(free, [listed(free, entry(1))])._entries)
    found = audited(edited(entries, 1, measured_variance=["0", "1"]))
    assert first(found) == ("noise-measured-unexpected", 1)


def test_a_context_of_another_attempt_is_found_and_an_old_one_is_unchecked() -> None:
    assert first(audited(edited(NEW, 2, attempt=1))) == ("context-mismatch", 2)
    result = audited(OLD)
    assert result.verified
    assert "record-version-1" in [finding.reason for finding in result.unchecked]
    assert "record-version-1" not in [finding.reason for finding in audited(NEW).unchecked]


# -- what operators decide ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "audited and approved by DPA \u202e<b>x</b>", "at": AT}, "record-malformed"),
        ({"action": "paused", "at": AT, "detail": "x" * (TEXT_MAX + 1)}, "record-malformed"),
        ({"action": "paused", "at": AT, "detail": 5}, "record-malformed"),
        ({"action": "paused", "at": 2**53 - 1}, "record-malformed"),
        ({"action": "paused", "at": -(10**14)}, "record-malformed"),
        ({"action": "paused", "at": True}, "record-malformed"),
        ({"action": "paused"}, "record-malformed"),
        ({}, "record-malformed"),
        ({"action": "paused", "at": AT, "detail": "", "seal": "DPA"}, "record-field-unknown"),
        ({"action": "paused", "at": 1_699_999_000, "detail": ""}, "time-order"),
    ],
)
def test_a_decision_without_its_form_is_found(fields: dict[str, Any], reason: str) -> None:
    result = audited([*NEW, policy(**fields)])
    assert first(result) == (reason, 4)
    assert len(result.problems[0].message) < 2 * TEXT_MAX


def test_decisions_of_before_stay_readable() -> None:
    actions = ("paused", "resumed", "charge-given-back", "finished")
    result = audited([*NEW, *(policy(action=a, at=AT, detail="x" * TEXT_MAX) for a in actions)])
    assert result.problems == ()
    assert [decision["action"] for decision in result.tasks[0].policies] == list(actions)


def test_nothing_of_a_task_follows_its_end() -> None:
    end = policy(action="finished", at=1_700_000_001, detail="")
    assert first(audited([*NEW[:2], end, *NEW[2:]])) == ("task-finished", 3)
    later = policy(action="resumed", at=AT, detail="")
    assert first(audited([*NEW, policy(action="finished", at=AT, detail=""), later])) == (
        "task-finished",
        5,
    )


def test_a_replica_whose_clock_is_a_little_behind_is_no_forgery() -> None:
    decision = policy(action="paused", at=1_700_000_002 - 299, detail="")
    assert audited([*NEW[:3], decision, NEW[3]]).problems[:1] == ()


@pytest.mark.parametrize(
    "changes", [{"cause": "x" * (TEXT_MAX + 1)}, {"at": TIME_MAX_S + 1}, {"at": -1}, {"seal": "x"}]
)
def test_a_ban_without_its_form_is_found(changes: dict[str, Any]) -> None:
    ban = json.loads(membership_record("banned", AT, cause="operator", device=b"d" * 32))
    found = audited([*NEW, rfc8785.dumps({**ban, **changes})])
    assert first(found)[0] == ("record-field-unknown" if "seal" in changes else "record-malformed")


# -- keys -----------------------------------------------------------------------------------

SECOND = nacl.signing.SigningKey(b"s" * 32)
SUCCESSOR = verifier_key(ORIGIN, bytes(SECOND.verify_key))


def signed_twice(entries: list[bytes]) -> dict[str, bytes]:
    builder = LedgerBuilder(ORIGIN, entries)
    files, text = served(builder), checkpoint_body(builder.checkpoint())
    line = signature_line(
        ORIGIN,
        key_id(ORIGIN, bytes(SECOND.verify_key)),
        SECOND.sign(text.encode()).signature,
    )
    return files | {"checkpoint": files["checkpoint"] + line.encode()}


def test_a_second_key_counts_once_it_signs_and_is_told() -> None:
    entries = [*NEW, key_rotation_record(VERIFIER, SUCCESSOR, AT)]
    result = verify_ledger(signed_twice(entries).get, VERIFIER)
    assert result.problems == ()
    assert [(leaf, r.new_verifier) for leaf, r in result.rotations] == [(4, SUCCESSOR)]


@pytest.mark.parametrize(
    ("old", "new", "at", "reason"),
    [
        (VERIFIER, SUCCESSOR, AT, "note-unsigned"),  # it does not sign this checkpoint
        ("x", SUCCESSOR, AT, "verifier-key"),
        (SUCCESSOR, VERIFIER, AT, "key-rotation-foreign"),
        (VERIFIER, "nonsense", AT, "verifier-key"),
        (VERIFIER, SUCCESSOR, -1, "record-malformed"),
        (VERIFIER, SUCCESSOR, 2**53 - 1, "record-malformed"),
    ],
)
def test_a_strangers_key_is_no_key_of_this_ledger(old: str, new: str, at: int, reason: str) -> None:
    result = audited([*NEW, key_rotation_record(old, new, at)])
    assert first(result) == (reason, 4)
    assert result.rotations == ()


# -- files ----------------------------------------------------------------------------------


def test_nothing_follows_the_last_record_of_a_bundle() -> None:
    files = served(LedgerBuilder(ORIGIN, NEW))
    path = f"tile/entries/000.p/{len(NEW)}"
    for more in (b"\0", b"\0\0", b"x" * 1000, files[path]):
        result = verify_ledger((files | {path: files[path] + more}).get, VERIFIER)
        assert first(result) == ("bundle-malformed", None)


def test_a_full_bundle_serves_where_its_partial_form_is_gone() -> None:
    longer = [*NEW, *(policy(action="paused", at=AT) for _ in range(TILE_WIDTH - len(NEW)))]
    then, now = served(LedgerBuilder(ORIGIN, NEW)), served(LedgerBuilder(ORIGIN, longer))
    assert verify_ledger((now | {"checkpoint": then["checkpoint"]}).get, VERIFIER).verified
    full = {path: data for path, data in now.items() if ".p/" not in path}
    assert verify_ledger((full | {"checkpoint": then["checkpoint"]}).get, VERIFIER).verified


def test_a_ledger_of_before_verifies_and_says_what_it_does_not_tell() -> None:
    def read(path: str) -> bytes | None:
        file = STORED / "ledger" / path
        return file.read_bytes() if file.is_file() else None

    result = verify_ledger(read, (STORED / "verifier.key").read_text())
    assert result.problems == ()
    assert {finding.reason for finding in result.unchecked} == {
        "others-view",
        "record-version-1",
        "sum-repeated",
    }


def test_two_tasks_do_not_share_their_order() -> None:
    """Times and ends are those of a task; another task may be older."""
    other = built(task="other")
    later = [
        msgspec.structs.replace(entry(n), cohort=hashlib.sha256(b"o%d" % n).digest()) for n in (1,)
    ]
    digest = manifest_digest(encode_manifest(other))
    entries = [*NEW, policy(action="finished", at=AT), signed_task(other)]
    entries.append(release_record(other, digest, [], later[0]))
    assert audited(entries).problems == ()


RECORD = json.loads(records.policy_record("t", "paused", 5))


def record_of(**changes: Any) -> Callable[[], object]:
    return lambda: parsing.parse_record(records._canonical(RECORD | changes))


REFUSED = {
    "a record of no JSON": Case(lambda: parsing.parse_record(b"{"), "record-malformed"),
    "a record that is a list": Case(lambda: parsing.parse_record(b"[]"), "record-malformed"),
    "a record with a float": Case(
        lambda: parsing.parse_record(b'{"a":[{"b":0.5}]}'), "record-malformed"
    ),
    "a record of another type": Case(record_of(type="rumour"), "record-type", None, "rumour"),
    "a record of another version": Case(record_of(version=2), "record-version", 1, 2),
    "a record of version true": Case(record_of(version=True), "record-version", 1, True),
    "a task without a manifest": Case(lambda: parsing.parse_task({}), "record-malformed"),
    "a manifest of another digest": Case(
        lambda: parsing.parse_task(
            json.loads(tasks.signed_task(built())) | {"manifest_digest": "00" * 32}
        ),
        "manifest-digest",
        "00" * 32,
        manifest_digest(encode_manifest(built())).hex(),
    ),
    "a model of no digest": Case(
        lambda: parsing.parse_first_model({"model_digest": "xy"}), "record-malformed"
    ),
    "a release without facts": Case(lambda: parsing.parse_release({}), "record-malformed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)
