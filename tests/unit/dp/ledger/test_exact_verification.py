"""What an audit says of a ledger: each finding at its leaf, each figure as recomputed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import nacl.signing
import pytest
import rfc8785

from dp.accounting.events import Composed
from dp.accounting.statements import (
    OVERRUN_DRAWS,
    ReleaseFacts,
    draws_per_release,
    epsilon_of,
    headline,
    lines,
    ring_release,
    slack_log2,
)
from dp.contracts import BudgetSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.records import (
    epsilon_micro,
    policy_record,
    release_record,
    task_record,
)
from dp.ledger.verification import verify_ledger
from dp.tlog.notes import sign_checkpoint, split_note
from dp.tlog.tiles import parse_bundle, tiles_of
from dp.tlog.witness import WitnessPolicy, add_cosignatures, cosign, parse_witness, witness_key
from secagg.hashing import encode_parts
from secagg.keys import identity_public_key
from secagg.manifest import encode_manifest, manifest_digest
from secagg.secret import Secret
from tests.kits.rotations import key_rotation_record
from tests.kits.tasks import (
    LEDGER_SEED,
    ORIGIN,
    TASK_SEED,
    VERIFIER,
    built,
    entry,
    ledger,
    served,
    signed_task,
)

MANIFEST = built()
HONEST = ledger(MANIFEST, (4, 5, 6))
FILES = served(HONEST)
EPSILON = [
    headline(lines(MANIFEST, [ReleaseFacts(survivors=n) for n in (4, 5, 6)][:k])) for k in range(4)
]
WITNESSES = [Secret(bytes([n]) * 32) for n in (7, 8)]
WITNESS_KEYS = [witness_key(f"w{n}", identity_public_key(s)) for n, s in enumerate(WITNESSES)]


def audited(files: dict[str, bytes], **named: Any) -> AuditResult:
    return verify_ledger(files.get, VERIFIER, **named)


def found(result: AuditResult) -> list[tuple[str, int | None]]:
    assert result.verified == (not result.problems)
    return [(problem.reason, problem.leaf) for problem in result.problems]


def changed(leaf: int, change: Callable[[dict[str, Any]], object]) -> AuditResult:
    entries = list(HONEST._entries)
    record = json.loads(entries[leaf])
    change(record)
    entries[leaf] = rfc8785.dumps(record)
    return audited(served(LedgerBuilder(ORIGIN, entries)))


def test_an_honest_ledger_s_figures() -> None:
    result = audited(FILES)
    assert found(result) == []
    assert (result.origin, result.tree_size) == (ORIGIN, 4)
    assert result.root == HONEST.checkpoint().root.hex()
    assert (result.releases, result.charged, result.witnesses) == (3, 3, {})
    assert result.epsilon == EPSILON[3]
    (task,) = result.tasks
    assert (task.leaf, task.manifest, task.admissible) == (0, MANIFEST, True)
    assert task.manifest_digest == manifest_digest(encode_manifest(MANIFEST))
    assert task.facts == tuple(ReleaseFacts(survivors=n, masking_set_size=6) for n in (4, 5, 6))
    assert [release.leaf for release in task.releases] == [1, 2, 3]
    assert [release.lines[0].epsilon for release in task.releases] == EPSILON[1:]
    assert task.lines == task.releases[-1].lines
    assert [release.entry.release for release in task.releases] == [1, 2, 3]


@pytest.mark.parametrize(
    ("leaf", "change", "expected"),
    [
        (2, lambda r: r.update(epsilon_micro=r["epsilon_micro"] + 1), []),
        (2, lambda r: r.update(epsilon_micro=r["epsilon_micro"] - 1), []),
        (2, lambda r: r.update(epsilon_micro=r["epsilon_micro"] + 2), [("epsilon-mismatch", 2)]),
        (2, lambda r: r.update(epsilon_micro=True), [("epsilon-mismatch", 2)]),
        (2, lambda r: r["lines"].append(r["lines"][0]), [("epsilon-mismatch", 2)]),
        (2, lambda r: r.update(lines={}), [("epsilon-mismatch", 2)]),
        (2, lambda r: r["lines"][0].update(more=1), [("epsilon-mismatch", 2)]),
        (2, lambda r: r["lines"][0].update(epsilon_micro=None), [("epsilon-mismatch", 2)]),
        (2, lambda r: r.update(measured_variance=["1", r["noise_variance"]]), []),
        (
            2,
            lambda r: r.update(measured_variance=["1", str(int(r["noise_variance"]) - 1)]),
            [("noise-measured-missing", 2)],
        ),
        (2, lambda r: r.update(noise_variance="0"), [("noise-variance", 2)]),
        (2, lambda r: r.update(manifest_digest=None), [("manifest-digest", 2)]),
        (2, lambda r: r.update(release=4), [("release-number", 2)]),
        (3, lambda r: r.update(cohort=entry(1).cohort.hex()), [("cohort-repeated", 3)]),
        (2, lambda r: r.update(cohort_size=7), [("cohort-size", 2)]),
        (3, lambda r: r.update(cohort_size=5), [("cohort-size", 3)] * 2),
        (3, lambda r: r.update(masking_set_size=5), [("cohort-size", 3)]),
        (2, lambda r: r.update(model_digests=[]), [("model-chain", 2)]),
        (2, lambda r: r.update(task=None), [("task-unknown", 2), ("release-number", 3)]),
        (3, lambda r: r["contributors"].pop(), [("contributors", 3)]),
        (2, lambda r: r.update(contributors_digest="ab" * 32), [("record-malformed", 2)]),
        (3, lambda r: r.update(type="rumour"), [("record-type", 3)]),
        (0, lambda r: r.update(task="another"), [("task-mismatch", 0)]),
        (0, lambda r: r.update(created_at=1), [("task-mismatch", 0)]),
        (0, lambda r: r.update(manifest_signature=""), [("manifest-signature", 0)]),
    ],
)
def test_a_finding_names_its_leaf(
    leaf: int, change: Callable[[dict[str, Any]], object], expected: list[tuple[str, int]]
) -> None:
    problems = found(changed(leaf, change))
    # A release that does not count makes the numbers of those after it wrong, and their chain.
    assert problems[: len(expected)] == expected
    assert bool(problems) == bool(expected)
    if expected and expected[0][0] not in ("task-unknown", "record-malformed"):
        assert problems == expected


def test_too_few_survivors_are_found_though_they_have_no_cost() -> None:
    result = changed(2, lambda r: r.update(survivors=3, contributors=r["contributors"][:3]))
    assert found(result)[:2] == [("survivors-min", 2), ("survivors-too-few", 2)]


def test_a_cohort_that_was_only_charged_shows_nothing() -> None:
    digest = manifest_digest(encode_manifest(MANIFEST))
    task = signed_task(MANIFEST)
    honest = release_record(MANIFEST, digest, [], entry(1, charged=True))
    result = audited(served(LedgerBuilder(ORIGIN, [task, honest])))
    assert found(result) == []
    assert (result.releases, result.charged) == (0, 1)
    assert result.epsilon == EPSILON[1]
    for key, value in (
        ("survivors", 4),
        ("contributors", ["00" * 32]),
        ("sum_digest", "00" * 32),
        ("new_model_digest", "00" * 32),
    ):
        record = rfc8785.dumps(json.loads(honest) | {key: value})
        result = audited(served(LedgerBuilder(ORIGIN, [task, record])))
        assert found(result) == [("charged-with-sum", 1)]
    measured = rfc8785.dumps(json.loads(honest) | {"measured_variance": ["0", "1"]})
    assert found(audited(served(LedgerBuilder(ORIGIN, [task, measured])))) == []


def test_tasks_are_audited_side_by_side_and_the_total_is_of_all() -> None:
    quiet = built(task="quiet", noise_multiplier=3.0)
    free = built(task="free", algorithm="fedavg", privacy="none")
    builder = LedgerBuilder(ORIGIN, [signed_task(m) for m in (quiet, MANIFEST, free)])
    builder.append(policy_record("quiet", "paused", 1_700_000_000))
    for manifest in (MANIFEST, quiet, free):
        digest = manifest_digest(encode_manifest(manifest))
        item = msgspec.structs.replace(entry(1, 4), cohort=manifest.task.encode().ljust(32))
        builder.append(release_record(manifest, digest, [], item))
    result = audited(served(builder))
    assert found(result) == []
    assert [task.leaf for task in result.tasks] == [0, 1, 2]
    assert [task.releases[0].leaf for task in result.tasks] == [5, 4, 6]
    example, device = result.totals
    assert result.epsilon == example.epsilon == device.epsilon == math.inf
    assert example.unbounded == device.unbounded == ("free",)
    fewest = ReleaseFacts(survivors=4)
    both = Composed(((ring_release(quiet, fewest, 1), 1), (ring_release(MANIFEST, fewest, 1), 1)))
    slack = slack_log2(2 * (draws_per_release(MANIFEST) + OVERRUN_DRAWS))
    assert example.bounded == example.stated == pytest.approx(epsilon_of(both, 1e-5, slack))
    assert example.bounded > EPSILON[1]
    assert (example.derived, device.derived) == ((), ("quiet", "demo"))
    (decision,) = result.tasks[0].policies
    assert (decision["action"], decision["leaf"]) == ("paused", 3)
    alone = audited(served(LedgerBuilder(ORIGIN, [signed_task(free)])))
    assert (alone.epsilon, alone.charged, alone.tasks[0].lines) == (None, 0, ())
    fresh = audited(served(LedgerBuilder(ORIGIN, [signed_task(MANIFEST)])))
    assert (fresh.epsilon, fresh.tasks[0].lines) == (0.0, lines(MANIFEST, 0))


def test_decisions_about_nothing_are_found_at_their_leaf() -> None:
    builder = LedgerBuilder(ORIGIN, [policy_record("x", "paused", 5)])
    builder.append(key_rotation_record(VERIFIER, "nonsense", 6))
    builder.append(b"{}")
    builder.append(signed_task(MANIFEST))
    builder.append(signed_task(MANIFEST))
    assert found(audited(served(builder))) == [
        ("task-unknown", 0),
        ("verifier-key", 1),
        ("record-type", 2),
        ("task-repeated", 4),
    ]


def test_a_manifest_without_a_verifier_names_another_ledger() -> None:
    manifest = msgspec.structs.replace(MANIFEST, ledger_verifier="nonsense")
    result = audited(served(LedgerBuilder(ORIGIN, [signed_task(manifest)])))
    assert found(result) == [("ledger-mismatch", 0), ("ledger-verifier", 0)]
    assert result.tasks[0].lines == ()
    assert result.epsilon == headline(()) is None


def test_a_task_key_that_is_none_signs_nothing() -> None:
    manifest = msgspec.structs.replace(MANIFEST, task_key=b"short")
    result = audited(served(LedgerBuilder(ORIGIN, [signed_task(manifest)])))
    assert found(result) == [("manifest-signature", 0), ("task-key", 0)]


def with_budget(epsilon: float | None, releases: int) -> AuditResult:
    """Three releases of four survivors under a budget that the task was not built with."""
    budget = msgspec.structs.replace(MANIFEST.budget, max_epsilon=epsilon, releases_max=releases)
    manifest = msgspec.structs.replace(MANIFEST, budget=budget)
    return audited(served(ledger(manifest, (4, 4, 4))))


def test_a_budget_may_be_spent_to_the_last() -> None:
    cost = headline(lines(MANIFEST, 3))
    assert found(with_budget(cost, 3)) == []
    assert found(with_budget(None, 3)) == []
    assert ("releases-exhausted", 3) in found(
        audited(served(ledger(built(budget=BudgetSpec(releases_max=2)), (4, 4, 4))))
    )


def of_models(*records: dict[str, Any], first: bytes = b"") -> list[tuple[str, int | None]]:
    """Findings of releases whose models are changed."""
    encoded = encode_manifest(MANIFEST)
    key = nacl.signing.SigningKey(TASK_SEED)
    signature = key.sign(encode_parts("manifest", encoded)).signature
    builder = LedgerBuilder(ORIGIN, [task_record(encoded, signature, first)])
    facts: list[ReleaseFacts] = []
    for number, changes in enumerate(records, 1):
        item = msgspec.structs.replace(entry(number, 4), **changes)
        builder.append(release_record(MANIFEST, manifest_digest(encoded), facts, item))
        facts.append(item.facts(MANIFEST))
    return found(audited(served(builder)))


def test_each_release_starts_from_the_model_before_it() -> None:
    zero, one, other = entry(1).model_digests[0], entry(1).new_model_digest, b"o" * 32
    assert of_models({}, {"model_digests": (one,)}, first=zero) == []
    assert of_models({}, {"model_digests": (one,)}) == []  # version 0 is untold: any one
    assert of_models({}, {"model_digests": (zero,)}) == [("model-chain", 2)]
    assert of_models({}, {"model_digests": (other,)}) == [("model-chain", 2)]
    assert of_models({}, first=other) == [("model-chain", 1)]
    assert of_models({"model_digests": (zero, other)}) == [("model-chain", 1)]
    assert of_models({"model_versions": (0,)}) == []
    assert of_models({"model_versions": (1,)}) == [("model-versions", 1)]
    second = {"model_digests": (one,), "model_versions": (1,)}
    assert of_models({}, second) == []
    assert of_models({}, second | {"model_versions": (0,)}) == [("model-versions", 2)]
    assert of_models({}, second | {"model_versions": (2,)}) == [("model-versions", 2)]


def cosigned(*numbers: int) -> dict[str, bytes]:
    note = FILES["checkpoint"]
    for number in numbers:
        line = cosign(split_note(note)[0], f"w{number}", WITNESSES[number], 100 + number)
        note = add_cosignatures(note, line, [parse_witness(key) for key in WITNESS_KEYS])
    return FILES | {"checkpoint": note}


def test_witnesses_are_demanded_and_named() -> None:
    both = WitnessPolicy.of(WITNESS_KEYS)
    result = audited(cosigned(0, 1), witnesses=both)
    assert (found(result), result.witnesses) == ([], {"w0": 100, "w1": 101})
    result = audited(cosigned(1), witnesses=both)
    assert found(result) == [("witnesses-missing", None)]
    assert result.witnesses == {"w1": 101}
    assert result.releases == 3  # and the rest is audited all the same
    assert found(audited(cosigned(1), witnesses=WitnessPolicy.of(WITNESS_KEYS, 1))) == []
    assert audited(cosigned(0, 1)).witnesses == {}


def test_what_cannot_be_read_has_no_figures() -> None:
    for files, reason in (
        ({}, "checkpoint-missing"),
        ({"checkpoint": b"x"}, "note-malformed"),
        ({"checkpoint": sign_checkpoint(HONEST.checkpoint(), Secret(bytes(32)))}, "note-unsigned"),
    ):
        result = audited(files)
        assert found(result) == [(reason, None)]
        assert (result.tree_size, result.root, result.origin) == (0, "", "")
        assert (result.epsilon, result.tasks, result.witnesses) == (None, (), {})
    assert found(verify_ledger(FILES.get, "nonsense")) == [("verifier-key", None)]
    gone = {path: data for path, data in cosigned(0).items() if "entries" not in path}
    result = audited(gone, witnesses=WitnessPolicy.of(WITNESS_KEYS, 1))
    assert found(result) == [("tile-missing", None)]
    assert (result.tree_size, result.origin) == (4, ORIGIN)
    assert result.root == HONEST.checkpoint().root.hex()
    assert result.witnesses == {"w0": 100}


def test_roots_tiles_and_older_heads_are_compared() -> None:
    tile = next(tiles_of(4)).path
    bent = FILES | {tile: bytes(len(FILES[tile]))}
    assert found(audited(bent)) == [("tile-mismatch", None)]
    lost = {path: data for path, data in FILES.items() if path != tile}
    assert found(audited(lost)) == [("tile-missing", None)]
    wrong = HONEST.checkpoint()._replace(root=bytes(32))
    signed = sign_checkpoint(wrong, Secret(LEDGER_SEED))
    assert found(audited(FILES | {"checkpoint": signed})) == [("root-mismatch", None)]
    before = served(ledger(MANIFEST, (4, 5)))["checkpoint"]
    longer = served(ledger(MANIFEST, (4, 5, 6, 4)))["checkpoint"]
    forked = served(ledger(MANIFEST, (5, 5, 6)))["checkpoint"]
    empty = served(LedgerBuilder(ORIGIN))["checkpoint"]
    assert found(audited(FILES, older=[empty, before, FILES["checkpoint"]])) == []
    assert found(audited(FILES, older=[b"x", longer, forked])) == [
        ("note-malformed", None),
        ("truncated", None),
        ("forked", None),
    ]
    assert parse_bundle(FILES["tile/entries/000.p/4"], 4) == list(HONEST._entries)


def test_the_recorded_cost_is_in_millionths_rounded_up() -> None:
    recorded = [json.loads(record)["epsilon_micro"] for record in HONEST._entries[1:]]
    assert recorded == [epsilon_micro(value) for value in EPSILON[1:]]
    (problem,) = changed(2, lambda r: r.update(epsilon_micro=0)).problems
    assert f"(epsilon {EPSILON[2]})" in problem.message
    few = msgspec.structs.replace(
        MANIFEST,
        noise=msgspec.structs.replace(
            MANIFEST.noise, share_variance=MANIFEST.noise.share_variance - 1
        ),
    )
    weak = found(audited(served(ledger(few, (4,)))))
    assert weak == [("noise-too-small", 0), ("task-inadmissible", 1)]
