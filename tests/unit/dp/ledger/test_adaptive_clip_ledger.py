"""A clip that adapts in the ledger, for its auditor and in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from dp.accounting.statements import ReleaseFacts
from dp.contracts import (
    CohortSpec,
)
from dp.contracts import warnings as warnings_of
from dp.errors import LedgerError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.parsing import clip_of, parse_record, parse_release
from dp.ledger.records import ClipMove, release_record
from dp.ledger.verification import verify_ledger
from dp.noise.adaptive_clip import first_clip, next_clip
from dp.report import report_data
from secagg.manifest import (
    Manifest,
    encode_manifest,
    manifest_digest,
)
from secagg_cli.audit.report import write_report
from tests.kits.adaptive import NO_LIMIT, device_level, example_level
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, served, signed_task


def moves(manifest: Manifest, *sums: int) -> list[ClipMove]:
    found, clip = [], first_clip(manifest)
    for below in sums:
        clip = next_clip(manifest, clip, below)
        found.append(ClipMove(clip=clip, below_units=below))
    return found


def recorded(manifest: Manifest, clips: list[ClipMove | None]) -> AuditResult:
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    facts: list[ReleaseFacts] = []
    digest = manifest_digest(encode_manifest(manifest))
    for number, move in enumerate(clips, 1):
        release = msgspec.structs.replace(entry(number), clip=move)
        builder.append(release_record(manifest, digest, facts, release))
        facts.append(release.facts(manifest))
    return verify_ledger(served(builder).get, VERIFIER)


def reasons(result: AuditResult) -> list[str]:
    return [problem.reason for problem in result.problems]


def test_an_auditor_recomputes_each_clip_from_the_one_before() -> None:
    manifest = example_level()
    honest = moves(manifest, 900, -700, 1 << 60, 5)
    assert [move.clip for move in honest][2] == 0.01
    result = recorded(manifest, list(honest))
    assert reasons(result) == []
    assert [release.entry.clip for release in result.tasks[0].releases] == honest


@pytest.mark.parametrize(
    ("clip", "reason"),
    [(0.9, "clip-mismatch"), (0.001, "clip-out-of-range"), (1e5, "clip-out-of-range")],
)
def test_an_auditor_flags_a_clip_that_does_not_follow(clip: float, reason: str) -> None:
    manifest = example_level()
    honest = moves(manifest, 900, 300)
    wrong = msgspec.structs.replace(honest[0], clip=clip)
    found = reasons(recorded(manifest, [wrong, honest[1]]))
    assert found[0] == reason


def test_an_auditor_flags_a_missing_clip_and_one_that_nothing_moved() -> None:
    manifest = example_level()
    one, two = moves(manifest, 900, 300)
    assert reasons(recorded(manifest, [None, two])) == ["clip-missing"]
    assert reasons(recorded(built(budget=NO_LIMIT), [one])) == ["clip-unexpected"]


def test_records_without_a_clip_are_the_bytes_that_they_were() -> None:
    manifest = built(budget=NO_LIMIT)
    digest = manifest_digest(encode_manifest(manifest))
    record = parse_record(release_record(manifest, digest, [], entry(1)))
    assert not {"clip", "below_units"} & record.keys()
    assert clip_of(record) is None


@pytest.mark.parametrize(
    "change",
    [
        {"clip": "nan"},
        {"clip": "inf"},
        {"clip": "1"},
        {"clip": "1.50"},
        {"clip": "x"},
        {"clip": 1},
        {"clip": None},
        {"below_units": "01"},
        {"below_units": 7},
        {"below_units": "9" * 41},
        {"below_units": None},
    ],
)
def test_a_clip_that_is_no_finite_number_is_a_malformed_record(change: dict[str, Any]) -> None:
    manifest = example_level()
    digest = manifest_digest(encode_manifest(manifest))
    release = msgspec.structs.replace(entry(1), clip=moves(manifest, 900)[0])
    record = parse_record(release_record(manifest, digest, [], release))
    assert parse_release(record).clip == release.clip
    with pytest.raises(LedgerError) as refused:
        parse_release({**record, **change})
    assert refused.value.reason == "record-malformed"


def test_the_report_shows_the_clip_in_force_in_each_release(tmp_path: Path) -> None:
    manifest = example_level(device_noise_multiplier=2.0, examples_max=16)
    honest = moves(manifest, 900, -700)
    data = report_data(recorded(manifest, list(honest)))
    in_force = (1.0, honest[0].clip)
    assert [release.clips for release in data.tasks[0].releases] == [
        (("example", clip), ("device", 16 * clip)) for clip in in_force
    ]
    names = {parameter.name for parameter in data.tasks[0].parameters}
    assert {"adaptive clip", "quantile", "clip learning_rate"} <= names
    write_report(tmp_path / "report.html", data)
    assert f"{honest[0].clip:g}</td>" in (tmp_path / "report.html").read_text()


def test_a_noisy_estimate_is_said_to_be_one() -> None:
    small = device_level(cohort=CohortSpec(size_min=6, size_max=6, survivors_min=4))
    assert any("quantile" in warning for warning in warnings_of(small))
    assert not any("quantile" in warning for warning in warnings_of(device_level()))
