"""A proven record against what a device knows of its cohort: every field, and the cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.log import Proven
from client_sdk.ledger.receipts import check_release
from client_sdk.state.journal import SessionRecord
from dp.accounting.statements import ACCOUNTANT_SKELLAM, lines
from dp.ledger.records import release_record
from secagg.manifest import encode_manifest, manifest_digest
from tests.kits.tasks import built, entry, listed

MANIFEST = built()
ENCODED = encode_manifest(MANIFEST)
RELEASED = listed(MANIFEST, entry(2))
BEFORE = entry(1).facts(MANIFEST)
RECORD: dict[str, Any] = json.loads(
    release_record(MANIFEST, manifest_digest(ENCODED), [BEFORE], RELEASED)
)
SESSION = SessionRecord(
    identity_key=b"i" * 32,
    task=MANIFEST.task,
    session="s",
    manifest=ENCODED,
    model_version=1,
    model_digest=RELEASED.model_digests[0],
    survivors_min=4,
    partner_keys=(),
    contribution="c",
    state=b"",
    effects=(),
    cursor=0,
    ctx=RELEASED.ctx,
    masking_set_size=RELEASED.masking_set_size,
    survivors=RELEASED.survivors,
    cohort=RELEASED.cohort,
    cohort_size=RELEASED.cohort_size,
    roster_digest=RELEASED.roster_digest,
    models=tuple(zip(RELEASED.model_versions, RELEASED.model_digests, strict=True)),
)


def proven(record: dict[str, Any]) -> Proven:
    return Proven(record, 2, b"entry", (b"h" * 32,), b"note")


def refused(record: dict[str, Any]) -> LedgerRefusal:
    with pytest.raises(LedgerRefusal) as caught:
        check_release(proven(record), SESSION, MANIFEST)
    error = caught.value
    assert (error.reason, error.lasting) == ("release-mismatch", True)
    assert error.evidence == proven(record).evidence()
    return error


def statement(**changes: Any) -> dict[str, Any]:
    """The record with its first privacy statement changed."""
    first, *others = RECORD["lines"]
    return {**RECORD, "lines": [{**first, **changes}, *others]}


def test_an_honest_record_is_believed() -> None:
    assert len(RECORD["lines"]) == 1
    check_release(proven(RECORD), SESSION, MANIFEST)


def test_a_record_of_an_earlier_version_is_compared_by_the_accountant_that_it_names() -> None:
    made = lines(MANIFEST, [BEFORE, RELEASED.facts(MANIFEST)], renyi=True)
    record = json.loads(
        release_record(MANIFEST, manifest_digest(ENCODED), [BEFORE], RELEASED, statements=made)
    )
    assert record["epsilon_micro"] > 1.02 * RECORD["epsilon_micro"]
    check_release(proven(record), SESSION, MANIFEST)

    # A first release costs what it costs alone: the other accountant's figure is another one.
    first = listed(MANIFEST, entry(1))
    session = replace(
        SESSION,
        ctx=first.ctx,
        cohort=first.cohort,
        roster_digest=first.roster_digest,
        models=tuple(zip(first.model_versions, first.model_digests, strict=True)),
    )
    made = lines(MANIFEST, [first.facts(MANIFEST)], renyi=True)
    record = json.loads(
        release_record(MANIFEST, manifest_digest(ENCODED), [], first, statements=made)
    )
    check_release(proven(record), session, MANIFEST)
    named = {**record["lines"][0], "accountant": ACCOUNTANT_SKELLAM}
    with pytest.raises(LedgerRefusal, match="epsilon is impossible"):
        check_release(proven({**record, "lines": [named]}), session, MANIFEST)


@pytest.mark.parametrize(("inside", "outside"), [(-2, -3), (1, 2)])
def test_the_last_bits_of_epsilon_may_differ_between_platforms(inside: int, outside: int) -> None:
    """A task's first release costs what it costs alone. The record rounds up to a millionth."""
    first = listed(MANIFEST, entry(1))
    record = json.loads(release_record(MANIFEST, manifest_digest(ENCODED), [], first))
    session = replace(
        SESSION,
        ctx=first.ctx,
        cohort=first.cohort,
        roster_digest=first.roster_digest,
        models=tuple(zip(first.model_versions, first.model_digests, strict=True)),
    )

    def moved(off: int) -> Proven:
        micro = record["epsilon_micro"] + off
        line = {**record["lines"][0], "epsilon_micro": micro}
        return proven({**record, "lines": [line], "epsilon_micro": micro})

    check_release(moved(inside), session, MANIFEST)
    with pytest.raises(LedgerRefusal, match="epsilon is impossible"):
        check_release(moved(outside), session, MANIFEST)


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort": "00" * 32},
        {"cohort_size": 7},
        {"roster_digest": "00" * 32},
        {"model_digests": ["00" * 32]},
        {"model_versions": [2]},
        {"noise_variance": "1"},
        {"version": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_field_that_the_device_knows_is_compared(changes: dict[str, Any]) -> None:
    refused({**RECORD, **changes})


def test_the_context_of_another_attempt_is_refused_with_both() -> None:
    error = refused({**RECORD, "attempt": 1})
    assert error.expected == RELEASED.ctx.hex()
    assert error.found not in (None, error.expected)
    assert len(str(error.found)) == 64


@pytest.mark.parametrize("lines", [[], None, RECORD["lines"] * 2])
def test_another_number_of_statements_is_refused_with_both(lines: Any) -> None:
    error = refused({**RECORD, "lines": lines})
    assert (error.expected, error.found) == (1, lines)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("epsilon_micro", lambda value: value // 2),
        ("epsilon_micro", lambda value: value * 2),
        ("epsilon_micro", float),
        ("unit", lambda value: "example" if value == "device" else "device"),
        ("amplified", lambda value: not value),
    ],
)
def test_a_statement_that_cannot_be_is_refused_with_both(
    key: str, change: Callable[[Any], Any]
) -> None:
    first = RECORD["lines"][0]
    record = statement(**{key: change(first[key])})
    error = refused(record)
    assert error.found == record["lines"][0]
    assert isinstance(error.expected, dict)
    low, high = error.expected["epsilon_micro"]
    assert low < first["epsilon_micro"] <= high + 2
    assert error.expected["unit"] == first["unit"]


def test_the_headline_is_the_largest_statement() -> None:
    error = refused({**RECORD, "epsilon_micro": RECORD["epsilon_micro"] + 1})
    assert (error.expected, error.found) == (
        RECORD["lines"][0]["epsilon_micro"],
        RECORD["epsilon_micro"] + 1,
    )


def test_a_release_beyond_what_the_task_may_make_is_refused_with_both() -> None:
    most = MANIFEST.budget.releases_max
    session = replace(SESSION, survivors=0)  # of an older software: no cost is compared
    with pytest.raises(LedgerRefusal) as caught:
        check_release(proven({**RECORD, "release": most + 1}), session, MANIFEST)
    assert (caught.value.expected, caught.value.found) == (f"at most {most}", most + 1)
