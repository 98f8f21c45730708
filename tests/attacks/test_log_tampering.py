"""A ledger that its own operator bends and signs again is found by whoever saw it before.

Five ways to bend it, three who find it: an auditor, a device, a witness. The operator holds the
ledger's key in all of them; the honest ledger that grows is accepted by all three.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import rfc8785
from typer.testing import CliRunner

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.policy import PrivacyPolicy
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import policy_record
from dp.tlog.merkle import Tree, consistency_proof, leaf_hash
from dp.tlog.witness import (
    AddCheckpoint,
    WitnessRefusal,
    add_cosignatures,
    encode_request,
    parse_witness,
)
from secagg.secret import Secret
from secagg_cli.main import app
from secagg_cli.witness.service import Witness
from tests.kits.device import journal_in
from tests.kits.tasks import ORIGIN, VERIFIER, built, ledger, served

HONEST = list(ledger(built(), (4, 5, 6, 4))._entries)
MORE = [policy_record("demo", "paused", 1_700_000_100 + n) for n in range(4)]


def cut() -> list[bytes]:
    return HONEST[:-1]


def reordered() -> list[bytes]:
    return [HONEST[0], HONEST[2], HONEST[1], *HONEST[3:]]


def edited() -> list[bytes]:
    record = json.loads(HONEST[2])
    record["released_at"] += 1
    return [*HONEST[:2], rfc8785.dumps(record), *HONEST[3:]]


def forked() -> list[bytes]:
    return [*HONEST[:4], *MORE]


def restored_from_a_backup() -> list[bytes]:
    return [*HONEST[:2], *MORE]


TAMPERED = pytest.mark.parametrize(
    "tamper", [cut, reordered, edited, forked, restored_from_a_backup]
)
Tamper = Callable[[], list[bytes]]


def files_of(entries: list[bytes]) -> dict[str, bytes]:
    return served(LedgerBuilder(ORIGIN, entries))


def witness_in(folder: Path) -> Witness:
    return Witness(
        folder / "witness.db", "w.example", Secret(b"w" * 32), [VERIFIER], lambda: 1_700_000_200
    )


def asked(old: int, entries: list[bytes]) -> bytes:
    tree = Tree([leaf_hash(entry) for entry in entries])
    proof = consistency_proof(tree.subtree, old, tree.size) if old <= tree.size else ()
    return encode_request(AddCheckpoint(old, tuple(proof), files_of(entries)["checkpoint"]))


def cosigned(witness: Witness, old: int, entries: list[bytes]) -> dict[str, bytes]:
    files = files_of(entries)
    line = witness.add_checkpoint(asked(old, entries))
    key = parse_witness(witness.verifier)
    return {**files, "checkpoint": add_cosignatures(files["checkpoint"], line, (key,))}


class Served:
    """Files of a ledger as a device fetches them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    async def ledger(self, path: str) -> bytes | None:
        return self._files.get(path)


def watch(files: dict[str, bytes], folder: Path, policy: PrivacyPolicy) -> LedgerWatch:
    async def at_once(seconds: float) -> None:
        pass

    return LedgerWatch(
        Served(files),  # type: ignore[arg-type]
        journal_in(folder),
        VERIFIER,
        at_once,
        policy.witness_policy,
    )


def audit(files: dict[str, bytes], folder: Path, *options: str) -> tuple[int, dict]:
    for path, data in files.items():
        target = folder / "ledger" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    command = ["audit", "verify", str(folder / "ledger"), "--key", VERIFIER, "--format", "json"]
    answer = CliRunner().invoke(app, [*command, *options])
    return answer.exit_code, json.loads(answer.stdout)


@TAMPERED
def test_an_auditor_finds_it(tamper: Tamper, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(files_of(HONEST)["checkpoint"])
    witness = witness_in(tmp_path)
    witness.add_checkpoint(asked(0, HONEST))
    options = ("--older", str(kept), "--witness", witness.verifier)
    code, found = audit(files_of(tamper()), tmp_path, *options)
    reasons = {problem["reason"] for problem in found["problems"]}
    assert (code, found["verified"]) == (1, False)
    assert {"truncated" if tamper is cut else "forked", "witnesses-missing"} <= reasons


@TAMPERED
async def test_a_device_finds_it(tamper: Tamper, tmp_path: Path) -> None:
    policy = PrivacyPolicy()
    await watch(files_of(HONEST), tmp_path, policy).advance()
    with pytest.raises(LedgerRefusal) as caught:
        await watch(files_of(tamper()), tmp_path, policy).advance()
    assert caught.value.reason == ("ledger-rolled-back" if tamper is cut else "ledger-forked")
    remembered = watch(files_of(HONEST), tmp_path, policy).remembered()
    assert remembered is not None
    assert remembered.size == len(HONEST)


@TAMPERED
def test_a_witness_finds_it(tamper: Tamper, tmp_path: Path) -> None:
    witness = witness_in(tmp_path)
    witness.add_checkpoint(asked(0, HONEST))
    body = asked(len(HONEST), tamper())
    with pytest.raises(WitnessRefusal) as caught:
        witness_in(tmp_path).add_checkpoint(body)
    assert caught.value.reason == ("log-rolled-back" if tamper is cut else "log-forked")
    assert witness.evidence() == ([] if tamper is cut else [body])
    witness.add_checkpoint(asked(len(HONEST), [*HONEST, *MORE]))  # the honest log goes on


@TAMPERED
async def test_a_new_device_that_demands_a_witness_finds_it(tamper: Tamper, tmp_path: Path) -> None:
    """It has seen nothing yet; the witness has."""
    witness = witness_in(tmp_path)
    honest = cosigned(witness, 0, HONEST)
    policy = PrivacyPolicy(witnesses=frozenset({witness.verifier}))
    rows = honest["checkpoint"].decode().rpartition("\n\n")[2].split("\n", 1)[1]
    bent = files_of(tamper())
    for note in (bent["checkpoint"], bent["checkpoint"] + rows.encode()):
        with pytest.raises(LedgerRefusal) as caught:
            await watch({**bent, "checkpoint": note}, tmp_path, policy).advance()
        assert caught.value.reason == "witnesses-missing"


async def test_the_honest_ledger_that_grows_is_followed_by_all_three(tmp_path: Path) -> None:
    witness = witness_in(tmp_path)
    policy = PrivacyPolicy(witnesses=frozenset({witness.verifier}))
    first = cosigned(witness, 0, HONEST)
    await watch(first, tmp_path, policy).advance()
    grown = cosigned(witness, len(HONEST), [*HONEST, *MORE])
    assert (await watch(grown, tmp_path, policy).advance()).size == len(HONEST) + len(MORE)
    kept = tmp_path / "kept"
    kept.write_bytes(first["checkpoint"])
    options = ("--older", str(kept), "--witness", witness.verifier)
    code, found = audit(grown, tmp_path, *options)
    assert (code, found["problems"]) == (0, [])
    assert found["witnesses"] == {"w.example": 1_700_000_200}
