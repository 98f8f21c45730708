"""An auditor finds every lie in a ledger; an honest one has no problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import rfc8785

from dp.accounting.statements import ReleaseFacts, guaranteed_variance, headline, lines
from dp.contracts import BudgetSpec, TrainingSpec
from dp.errors import AccountingError, LedgerError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.parsing import parse_record
from dp.ledger.records import policy_record, release_record, task_record
from dp.ledger.verification import verify_ledger
from dp.tlog.notes import Checkpoint, sign_checkpoint
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from secagg.secret import Secret
from tests.kits.rotations import key_rotation_record
from tests.kits.tasks import (
    LEDGER_SEED,
    ORIGIN,
    VERIFIER,
    built,
    entry,
    ledger,
    served,
    signed_task,
)


def reasons(result: AuditResult) -> set[str]:
    assert result.verified == (not result.problems)
    return {problem.reason for problem in result.problems}


def entries_of(builder: LedgerBuilder) -> list[bytes]:
    return list(builder._entries)


def edited(
    builder: LedgerBuilder, leaf: int, change: Callable[[dict[str, Any]], object]
) -> dict[str, bytes]:
    """The ledger as an operator would re-sign it after changing one record."""
    entries = entries_of(builder)
    record = json.loads(entries[leaf])
    change(record)
    entries[leaf] = rfc8785.dumps(record)
    return served(LedgerBuilder(ORIGIN, entries))


def audited(files: dict[str, bytes], **arguments) -> AuditResult:
    return verify_ledger(files.get, VERIFIER, **arguments)


def test_an_honest_ledger_verifies_and_its_epsilon_is_recomputed() -> None:
    manifest = built()
    result = audited(served(ledger(manifest, (4, 5, 6, 4))))
    assert reasons(result) == set()
    assert (result.tree_size, result.releases, result.charged) == (5, 4, 4)
    (task,) = result.tasks
    assert result.epsilon == headline(lines(manifest, task.facts))
    assert [release.guaranteed_variance for release in task.releases] == [
        manifest.noise.share_variance * count for count in (3, 4, 5, 3)
    ]
    assert msgspec.json.decode(msgspec.json.encode(result))["verified"] is True


def test_a_charged_cohort_costs_as_much_as_its_fewest_survivors() -> None:
    manifest = built()
    digest = manifest_digest(encode_manifest(manifest))
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    builder.append(release_record(manifest, digest, [], entry(1, charged=True)))
    facts = [entry(1, charged=True).facts(manifest)]
    builder.append(release_record(manifest, digest, facts, entry(2, 6)))
    result = audited(served(builder))
    # The chain of models skips the charged cohort: its model stays current.
    assert reasons(result) == set()
    assert (result.releases, result.charged) == (1, 2)
    assert result.epsilon > headline(lines(manifest, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "fedavg", "noise_multiplier": 3.0},
        {"algorithm": "fedavg", "privacy": "none"},
        {"report_slot_s": 5.0},
        {
            "device_noise_multiplier": 3.0,
            "examples_max": 8,
            "budget": BudgetSpec(max_epsilon=None),
        },
    ],
)
def test_every_mode_is_audited(changes: dict) -> None:
    manifest = built(**changes)
    result = audited(served(ledger(manifest, (6, 5))))
    assert reasons(result) == set()
    assert (result.epsilon is None) == (changes.get("privacy") == "none")
    assert len(result.tasks[0].lines) == len(lines(manifest, 2))


def test_wrong_key_proves_nothing() -> None:
    files = served(ledger(built(), (4,)), seed=bytes(32))
    assert reasons(audited(files)) == {"note-unsigned"}
    assert reasons(verify_ledger(files.get, "no key")) == {"verifier-key"}
    assert reasons(audited({})) == {"checkpoint-missing"}


def test_edited_removed_reordered_and_added_entries_are_seen() -> None:
    builder = ledger(built(), (4, 5, 6))
    honest = served(builder)
    entries = entries_of(builder)
    changed = [*entries[:2], entries[2].replace(b'"survivors":5', b'"survivors":6'), entries[3]]
    for tampered in (
        changed,
        [entries[0], entries[2], entries[1], entries[3]],
        [*entries[:3], entries[2]],
    ):
        files = {**served(LedgerBuilder(ORIGIN, tampered)), "checkpoint": honest["checkpoint"]}
        assert "root-mismatch" in reasons(audited(files))
    shorter = served(LedgerBuilder(ORIGIN, entries[:3]))
    files = {**shorter, "checkpoint": honest["checkpoint"]}
    assert "tile-missing" in reasons(audited(files))


def test_a_tile_that_does_not_match_its_entries_is_seen() -> None:
    files = served(ledger(built(), (4,)))
    path = next(path for path in files if path.startswith("tile/0/"))
    files[path] = bytes(len(files[path]))
    assert reasons(audited(files)) == {"tile-mismatch"}
    del files[path]
    assert reasons(audited(files)) == {"tile-missing"}


def test_truncation_and_forks_are_seen_by_whoever_kept_a_checkpoint() -> None:
    manifest = built()
    kept = served(ledger(manifest, (4, 5)))["checkpoint"]
    assert reasons(audited(served(ledger(manifest, (4, 5, 6))), older=[kept])) == set()
    assert reasons(audited(served(ledger(manifest, (4,))), older=[kept])) == {"truncated"}
    assert reasons(audited(served(ledger(manifest, (6, 5, 6))), older=[kept])) == {"forked"}
    assert reasons(audited(served(ledger(manifest, (4, 4))), older=[kept])) == {"forked"}
    (problem,) = audited(served(ledger(manifest, (4,))), older=[b"x"]).problems
    assert problem.reason == "note-malformed"
    assert problem.message.startswith("An older checkpoint: ")


@pytest.mark.parametrize(
    ("leaf", "change", "reason"),
    [
        (2, lambda r: r.update(epsilon_micro=r["epsilon_micro"] - 2), "epsilon-mismatch"),
        (2, lambda r: r.update(epsilon_micro=None), "epsilon-mismatch"),
        (2, lambda r: r.update(lines=[]), "epsilon-mismatch"),
        (2, lambda r: r["lines"][0].update(adversary="nobody"), "epsilon-mismatch"),
        (2, lambda r: r["lines"][0].update(delta="1e-09"), "epsilon-mismatch"),
        (2, lambda r: r["lines"][0].update(epsilon_micro=1), "epsilon-mismatch"),
        (2, lambda r: r["lines"][0].update(accountant="gdp/opacus"), "epsilon-mismatch"),
        (2, lambda r: r["lines"][0].update(adjacency="replace-one"), "epsilon-mismatch"),
        (2, lambda r: r["lines"][0].pop("mode"), "epsilon-mismatch"),
        (2, lambda r: r.update(lines=[1]), "epsilon-mismatch"),
        (2, lambda r: r.update(survivors=6), "contributors"),
        (2, lambda r: r.update(survivors=3, contributors=r["contributors"][:3]), "survivors-min"),
        (2, lambda r: r["contributors"].append(r["contributors"][0]), "contributors"),
        (2, lambda r: r.update(noise_variance="1"), "noise-variance"),
        (2, lambda r: r.update(measured_variance=["1", "2"]), "noise-measured-missing"),
        (2, lambda r: r.update(measured_variance=["1"]), "record-malformed"),
        (2, lambda r: r.update(measured_variance=["01", "2"]), "record-malformed"),
        (2, lambda r: r.update(release=3), "release-number"),
        (2, lambda r: r.update(release=1), "release-number"),
        (2, lambda r: r.update(cohort=entry(1).cohort.hex()), "cohort-repeated"),
        (2, lambda r: r.update(cohort_size=7), "cohort-size"),
        (2, lambda r: r.update(masking_set_size=4), "cohort-size"),
        (2, lambda r: r.update(model_digests=["00" * 32]), "model-chain"),
        (2, lambda r: r.update(manifest_digest="00" * 32), "manifest-digest"),
        (2, lambda r: r.update(task="another"), "task-unknown"),
        (2, lambda r: r.update(outcome="lost"), "record-malformed"),
        (2, lambda r: r.update(outcome="charged"), "charged-with-sum"),
        (2, lambda r: r.update(survivors=-1), "record-malformed"),
        (2, lambda r: r.update(survivors="5"), "record-malformed"),
        (2, lambda r: r.update(survivors=True), "record-malformed"),
        (2, lambda r: r.update(ctx="XY"), "record-malformed"),
        (2, lambda r: r.update(ctx="AB"), "record-malformed"),
        (2, lambda r: r.pop("ctx"), "record-malformed"),
        (2, lambda r: r.update(extra=0.5), "record-malformed"),
        (2, lambda r: r.update(type="rumour"), "record-type"),
        (2, lambda r: r.update(version=3), "record-version"),
        (2, lambda r: r.update(version=True), "record-version"),
        (2, lambda r: r["lines"][0].update(amplified=0), "epsilon-mismatch"),
        (0, lambda r: r.update(manifest_digest="00" * 32), "manifest-digest"),
        (0, lambda r: r.update(manifest_signature="00" * 64), "manifest-signature"),
        (0, lambda r: r.update(manifest="!"), "record-malformed"),
        (0, lambda r: r.update(manifest=r["manifest"][:-8]), "record-malformed"),
        (0, lambda r: r.update(manifest=1), "record-malformed"),
        (0, lambda r: r.update(task="another"), "task-mismatch"),
        (0, lambda r: r.update(created_at=5), "task-mismatch"),
    ],
)
def test_a_record_that_lies_is_found_even_if_it_is_signed(
    leaf: int, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    result = audited(edited(ledger(built(), (4, 5, 6)), leaf, change))
    assert reason in reasons(result)
    assert not result.verified


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # Another masking set leaves another noise, whatever else the record says.
        (lambda r: r.update(masking_set_size=5), "noise-variance"),
        (lambda r: r.update(masking_set_size=5), "epsilon-mismatch"),
        (lambda r: r.update(cohort_size=7, masking_set_size=7), "masking-set-size"),
    ],
)
def test_with_removable_noise_the_masking_set_decides_what_is_charged(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    manifest = built()
    assert (manifest.cohort.survivors_min, manifest.cohort.size_max) == (4, 6)
    # One level for one drop-out and for two: with one, more is left than is needed.
    manifest = msgspec.structs.replace(
        manifest,
        noise=msgspec.structs.replace(manifest.noise, removable_drops=(2,)),
        encoding=msgspec.structs.replace(manifest.encoding, wrap_log2=-40.0),
    )
    builder = ledger(manifest, (4, 5, 6))
    honest = audited(served(builder))
    assert honest.verified, honest.problems
    recorded = [release.guaranteed_variance for release in honest.tasks[0].releases]
    assert recorded == [
        guaranteed_variance(manifest, ReleaseFacts(survivors=u, masking_set_size=6))
        for u in (4, 5, 6)
    ]
    assert 3 * recorded[1] == 4 * recorded[0]
    assert reason in reasons(audited(edited(builder, 2, change)))


def test_a_record_that_is_not_canonical_is_found() -> None:
    builder = ledger(built(), (4,))
    entries = entries_of(builder)
    for broken in (
        entries[1].replace(b'"release":1', b'"release": 1'),
        b"not json",
        b"[1]",
        b"\xff",
        b"[" * 5_000,
        b'{"a":NaN}',
    ):
        files = served(LedgerBuilder(ORIGIN, [entries[0], broken]))
        assert reasons(audited(files)) == {"record-malformed"}


def test_a_second_task_of_the_same_name_is_found() -> None:
    manifest = built()
    files = served(LedgerBuilder(ORIGIN, [signed_task(manifest)] * 2))
    assert reasons(audited(files)) == {"task-repeated"}


def test_a_task_that_the_rules_refuse_is_found_and_not_accounted() -> None:
    manifest = built()
    weak = msgspec.structs.replace(
        manifest,
        noise=msgspec.structs.replace(
            manifest.noise, share_variance=manifest.noise.share_variance - 1
        ),
    )
    result = audited(served(ledger(weak, (4,))))
    assert reasons(result) == {"noise-too-small", "task-inadmissible"}
    assert result.epsilon is None


def test_a_task_of_another_ledger_is_found() -> None:
    other = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    manifest = msgspec.structs.replace(built(), ledger_verifier=other)
    assert reasons(audited(served(ledger(manifest, ())))) == {"ledger-mismatch"}


def over_budget(manifest: Manifest, releases: int) -> LedgerBuilder:
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    digest, facts = manifest_digest(encode_manifest(manifest)), []
    for number in range(1, releases + 1):
        builder.append(release_record(manifest, digest, facts, entry(number, 4)))
        facts.append(entry(number, 4).facts(manifest))
    return builder


def test_more_than_the_budget_is_found() -> None:
    result = audited(served(over_budget(built(), 6)))
    assert reasons(result) == {"releases-exhausted", "budget-exhausted"}
    assert result.epsilon > 8


def test_decisions_and_key_rotations_are_read() -> None:
    builder = ledger(built(), (4,))
    builder.append(policy_record("demo", "paused", 1_700_000_005, "maintenance"))
    builder.append(key_rotation_record(VERIFIER, VERIFIER, 6))
    result = audited(served(builder))
    assert reasons(result) == set()
    assert result.tasks[0].policies[0]["action"] == "paused"
    builder.append(policy_record("another", "paused", 5))
    builder.append(key_rotation_record(VERIFIER, "nonsense", 6))
    assert reasons(audited(served(builder))) == {"task-unknown", "verifier-key"}


def test_federated_statistics_need_no_chain_of_models() -> None:
    from tests.kits.tasks import statistics

    manifest = built(statistics(("x", 4, 1.0), device_noise_multiplier=4.0))
    assert reasons(audited(served(ledger(manifest, (6, 5))))) == set()


def test_release_records_refuse_what_an_auditor_would_find() -> None:
    manifest = built()
    digest = manifest_digest(encode_manifest(manifest))
    with pytest.raises(LedgerError, match="release-number"):
        release_record(manifest, digest, [], entry(2, 4))
    with pytest.raises(AccountingError, match="survivors-too-few"):
        release_record(manifest, digest, [], entry(1, 3))


def test_task_record_holds_the_manifest_whole() -> None:
    manifest = built()
    encoded = encode_manifest(manifest)
    record = parse_record(task_record(encoded, bytes(64)))
    assert record["manifest_digest"] == manifest_digest(encoded).hex()
    assert not any(isinstance(value, float) for value in record.values())


def test_a_manifest_that_does_not_fit_a_ledger_entry_is_refused() -> None:
    manifest = built()
    tensors = tuple(
        msgspec.structs.replace(
            manifest.adapter.trainable[0],
            name=hashlib.sha512(bytes([i % 256, i // 256])).hexdigest(),
        )
        for i in range(1000)
    )
    adapter = msgspec.structs.replace(manifest.adapter, trainable=tensors)
    large = encode_manifest(msgspec.structs.replace(manifest, adapter=adapter))
    with pytest.raises(LedgerError, match="record-too-large"):
        task_record(large, bytes(64))


def test_a_zip_bomb_in_a_task_record_is_refused() -> None:
    import base64
    import zlib

    def bomb(record: dict[str, Any]) -> None:
        record["manifest"] = base64.b64encode(zlib.compress(bytes(40_000_000), 9)).decode()

    assert "record-malformed" in reasons(audited(edited(ledger(built(), ()), 0, bomb)))


def test_training_terms_are_in_the_record() -> None:
    manifest = built(training=TrainingSpec(server_learning_rate=6.0))
    result = audited(served(ledger(manifest, ())))
    assert result.tasks[0].manifest.training.server_learning_rate == 6.0
    assert result.tasks[0].lines[0].epsilon == 0.0


def test_checkpoint_over_the_wrong_root_is_found() -> None:
    builder = ledger(built(), (4,))
    files = served(builder)
    wrong = builder.checkpoint()._replace(root=bytes(32))
    files["checkpoint"] = sign_checkpoint(wrong, Secret(LEDGER_SEED))
    assert reasons(audited(files)) == {"root-mismatch"}


def test_a_signed_size_that_no_audit_reads_is_a_problem() -> None:
    """It is found before the first entry is asked for."""
    reads: list[str] = []
    note = sign_checkpoint(Checkpoint(ORIGIN, 10**17, b"r" * 32), Secret(LEDGER_SEED))

    def read(path: str) -> bytes | None:
        reads.append(path)
        return note if path == "checkpoint" else None

    (problem,) = verify_ledger(read, VERIFIER).problems
    assert problem.reason == "ledger-too-large"
    assert str(10**17) in problem.message
    assert reads == ["checkpoint"]


def test_the_adversary_in_the_words_of_earlier_records_is_accepted() -> None:
    """They named ``silent_max`` devices, whatever the masks stood against."""
    before = "the aggregator with 1 other device, and everyone who sees the model"
    files = edited(
        ledger(built(), (4, 4)), 2, lambda record: record["lines"][0].update(adversary=before)
    )
    assert verify_ledger(files.get, VERIFIER).verified
    files = edited(
        ledger(built(), (4, 4)),
        2,
        lambda record: record["lines"][0].update(adversary=before.replace("1 other", "9 other")),
    )
    assert reasons(verify_ledger(files.get, VERIFIER)) == {"epsilon-mismatch"}
