"""Whatever ledger is audited, its report can be written; of a verified one above all."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import nacl.signing
import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp.contracts import BudgetSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.records import membership_record, policy_record, release_record
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from dp.tlog.witness import WitnessPolicy, cosign, witness_key
from secagg.manifest import encode_manifest, manifest_digest
from secagg.secret import Secret
from secagg_cli.audit.report import render
from tests.kits.rotations import key_rotation_record
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

NO_LIMIT = BudgetSpec(max_epsilon=None)
AT = 1_700_000_100


def everything() -> list[bytes]:
    """A ledger with a record of every kind, of both versions."""
    first = built(budget=NO_LIMIT)
    charged = listed(first, entry(2, charged=True), 1, fault="unknown", cause="too-few-vectors")
    entries = list(listing(first, [listed(first, entry(1)), charged])._entries)
    local = built(task="other", algorithm="fedavg", noise_multiplier=3.0)
    old = msgspec.structs.replace(entry(1, 6), cohort=b"o" * 32)
    entries.append(signed_task(local))
    entries.append(release_record(local, manifest_digest(encode_manifest(local)), [], old))
    entries.append(policy_record("demo", "charge-given-back", AT, "cohort ab: nobody had sent"))
    entries.append(policy_record("demo", "paused", AT, "maintenance"))
    entries.append(membership_record("banned", AT, cause="operator", device=b"d" * 32))
    entries.append(key_rotation_record(VERIFIER, VERIFIER, AT))
    return entries


ENTRIES = everything()

numbers = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([2**31, 2**32 - 1, 2**32, 253402300799, 2**53 - 1, -(2**53) + 1, AT]),
)
texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "\u202e", "\x1b[2J", "<script>", "9" * 400, "00" * 32, "Ab" * 32, "finished"]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def shown(result: AuditResult) -> str:
    data = report_data(result)
    msgspec.json.encode(data)
    return render(data)


def audited(entries: list[bytes]) -> AuditResult:
    return verify_ledger(served(LedgerBuilder(ORIGIN, entries)).get, VERIFIER)


def test_the_ledger_that_is_changed_verifies() -> None:
    result = audited(ENTRIES)
    assert result.problems == ()
    assert "signs too, record 8" in shown(result)


@given(st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_verifies_can_be_reported_and_what_does_not_too(data: st.DataObject) -> None:
    entries = list(ENTRIES)
    for _ in range(data.draw(st.integers(1, 3))):
        leaf = data.draw(st.integers(0, len(entries) - 1))
        record: dict[str, Any] = copy.deepcopy(json.loads(entries[leaf]))
        names = [*sorted(record), "also"]
        place = data.draw(st.sampled_from(names))
        if place in record and data.draw(st.booleans()):
            del record[place]
        else:
            record[place] = data.draw(values)
        try:
            entries[leaf] = rfc8785.dumps(record)
        except (rfc8785.CanonicalizationError, UnicodeEncodeError):
            return
    shown(audited(entries))


@pytest.mark.parametrize("at_s", [0, 253402300799, 2**63 - 1])
def test_a_witness_may_have_any_clock(at_s: int) -> None:
    files = served(ledger(built(), (4,)))
    text = files["checkpoint"].decode().split("\n\n")[0] + "\n"
    seed = b"w" * 32
    line = cosign(text, "witness", Secret(seed), at_s)
    files["checkpoint"] += line.encode()
    key = witness_key("witness", bytes(nacl.signing.SigningKey(seed).verify_key))
    result = verify_ledger(files.get, VERIFIER, witnesses=WitnessPolicy.of([key]))
    assert result.verified
    assert "witness" in shown(result)


def test_an_operators_words_do_not_change_how_others_are_read() -> None:
    words = "paid \u202eoverruled\u2066 \x1b[2J\x9b1m\u2028 <b>bold</b> caf\u00e9"
    result = audited([*ENTRIES[:3], policy_record("demo", "paused", AT, words)])
    assert result.verified
    page = shown(result)
    for hidden in ("\u202e", "\u2066", "\x1b", "\x9b", "\u2028", "<b>"):
        assert hidden not in page
    assert (
        "paid \\u202eoverruled\\u2066 \\x1b[2J\\x9b1m\\u2028 &lt;b&gt;bold&lt;/b&gt; caf\u00e9"
        in page
    )
