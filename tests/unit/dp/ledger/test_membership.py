"""Records of bans and partners, and of whose fault a charge was: what parses, what is audited."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import rfc8785

from dp.errors import LedgerError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.parsing import parse_record, parse_release
from dp.ledger.records import membership_record, parse_membership, release_record
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from secagg_cli.audit.report import render
from tests.kits.tasks import VERIFIER, built, entry, ledger, listed, listing, served

DEVICE, PARTNER, COHORT = b"\xdd" * 32, b"p" * 32, b"c" * 32
BAN = {
    "type": "membership",
    "version": 1,
    "action": "banned",
    "cause": "dealer-self-seed",
    "at": 1_700_000_000,
    "task": "t",
    "cohort": COHORT.hex(),
    "device": DEVICE.hex(),
    "partner": "",
    "number": 0,
    "digest": "",
}
LIST = BAN | {
    "action": "revoked",
    "cause": "partner",
    "task": "",
    "cohort": "",
    "device": "",
    "partner": PARTNER.hex(),
    "number": 3,
    "digest": b"l".hex() * 32,
}


def audit(builder: LedgerBuilder) -> AuditResult:
    return verify_ledger(served(builder).get, VERIFIER)


def test_a_ban_and_a_list_key_by_key() -> None:
    ban = membership_record(
        "banned",
        1_700_000_000,
        cause="dealer-self-seed",
        task="t",
        cohort=COHORT,
        device=DEVICE,
    )
    assert ban == rfc8785.dumps(BAN)
    listed = membership_record(
        "revoked", 1_700_000_000, cause="partner", partner=PARTNER, number=3, digest=b"l" * 32
    )
    assert listed == rfc8785.dumps(LIST)
    assert parse_record(ban) == BAN


@pytest.mark.parametrize(
    "change",
    [
        {"action": "praised"},
        {"device": ""},
        {"device": DEVICE.hex().upper()},
        {"device": "ab"},
        {"device": "zz" * 32},
        {"partner": PARTNER.hex()},
        {"number": 1},
        {"at": -1},
        {"at": "now"},
        {"cohort": "c"},
        {"cause": 7},
    ],
)
def test_a_ban_that_cannot_be_does_not_parse(change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="record-malformed"):
        parse_membership(BAN | change)


@pytest.mark.parametrize("change", [{"number": 0}, {"partner": ""}, {"number": 1 << 53}])
def test_a_list_that_cannot_be_does_not_parse(change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="record-malformed"):
        parse_membership(LIST | change)


def test_a_record_that_lacks_a_field_does_not_parse() -> None:
    for key in BAN.keys() - {"type", "version"}:
        with pytest.raises(LedgerError, match="record-malformed"):
            parse_membership({k: v for k, v in BAN.items() if k != key})


def test_bans_stand_in_the_audit_and_on_the_page() -> None:
    builder = ledger(built(), (4,))
    builder.append(membership_record("banned", 1_700_000_100, cause="operator", device=DEVICE))
    builder.append(membership_record("partner-removed", 1_700_000_200, partner=PARTNER))
    result = audit(builder)
    assert result.verified
    assert [(leaf, r.action) for leaf, r in result.memberships] == [
        (2, "banned"),
        (3, "partner-removed"),
    ]
    page = render(report_data(result))
    who = DEVICE.hex()[:16]
    assert f"2023-11-14 22:15 UTC: banned (operator), <code>{who}</code>, record 2" in page
    assert "Who may take part" not in render(report_data(audit(ledger(built(), (4,)))))


def test_a_malformed_ban_is_found_at_its_leaf() -> None:
    builder = ledger(built(), (4,))
    builder.append(rfc8785.dumps(BAN | {"device": ""}))
    (problem,) = audit(builder).problems
    assert (problem.reason, problem.leaf) == ("record-malformed", 2)


def test_a_charged_record_says_whose_fault_it_was() -> None:
    manifest = built()
    charged = msgspec.structs.replace(
        entry(1, charged=True), fault="service", cause="release-failed"
    )
    result = audit(listing(manifest, [listed(manifest, charged)]))
    assert result.verified, result.problems
    (release,) = result.tasks[0].releases
    assert (release.entry.fault, release.entry.cause) == ("service", "release-failed")


@pytest.mark.parametrize(
    "change", [{"fault": "nobody"}, {"fault": None}, {"cause": ""}, {"cause": 7}]
)
def test_a_fault_that_cannot_be_does_not_parse(change: dict[str, Any]) -> None:
    charged = msgspec.structs.replace(entry(1, charged=True), fault="devices", cause="x")
    manifest = built()
    record = json.loads(release_record(manifest, b"m" * 32, [], charged))
    assert parse_release(record).fault == "devices"
    with pytest.raises(LedgerError, match="record-malformed"):
        parse_release(record | change)


def test_a_release_is_nobodys_fault() -> None:
    blamed = listed(built(), entry(1), fault="devices", cause="x")
    problems = audit(listing(built(), [blamed])).problems
    assert "fault-unexpected" in [problem.reason for problem in problems]
