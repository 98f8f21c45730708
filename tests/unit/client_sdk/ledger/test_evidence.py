"""Evidence files and quarantined tasks."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.evidence import Quarantine, Quarantined, keep_evidence
from client_sdk.state.journal import SessionRecord
from dp.ledger import parsing
from tests.kits.device import journal_in

LEDGER, OTHER = "a.test+00000000+AA==", "b.test+00000000+AA=="


def quarantined(task: str, ledger: str = LEDGER, reason: str = "release-mismatch") -> Quarantined:
    return Quarantined(ledger=ledger, task=task, reason=reason, evidence="evidence-1.json", at=5.0)


def test_a_task_is_refused_on_one_ledger_until_it_is_released(tmp_path: Path) -> None:
    Quarantine(journal_in(tmp_path)).add(quarantined("one"))
    again = Quarantine(journal_in(tmp_path))
    with pytest.raises(LedgerRefusal) as caught:
        again.check(LEDGER, "one")
    assert caught.value.reason == "ledger-quarantined"
    assert caught.value.found == "release-mismatch"
    assert str(tmp_path / "evidence-1.json") in str(caught.value)
    again.check(LEDGER, "two")
    again.check(OTHER, "one")
    assert again.release("two") == ()
    assert again.release("one") == (quarantined("one"),)
    again.check(LEDGER, "one")
    assert Quarantine(journal_in(tmp_path)).entries == ()


def test_a_second_entry_of_a_task_replaces_the_first_and_no_other(tmp_path: Path) -> None:
    quarantine = Quarantine(journal_in(tmp_path))
    kept = (quarantined("two"), quarantined("one", OTHER))
    for entry in (quarantined("one"), *kept, quarantined("one", reason="contributor-missing")):
        quarantine.add(entry)
    assert quarantine.entries == (*kept, quarantined("one", reason="contributor-missing"))
    assert len(quarantine.release("one")) == 2
    assert quarantine.entries == (quarantined("two"),)


def test_a_task_whose_records_were_not_read_is_admitted_by_software_that_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = LedgerRefusal("record-version", "Later.", expected=2, found=3)
    entry = Quarantined.of(error, ledger=LEDGER, task="one", evidence="evidence-1.json", at=5.0)
    quarantine = Quarantine(journal_in(tmp_path))
    quarantine.add(entry)
    quarantine.add(quarantined("two"))
    with pytest.raises(LedgerRefusal) as caught:
        Quarantine(journal_in(tmp_path)).check(LEDGER, "one")
    assert (caught.value.reason, caught.value.found) == ("ledger-quarantined", 3)
    assert "Update" in str(caught.value.remedy)
    assert "fault" not in caught.value.message
    monkeypatch.setitem(parsing._VERSIONS, "release", (1, 2, 3))
    Quarantine(journal_in(tmp_path)).check(LEDGER, "one")
    with pytest.raises(LedgerRefusal, match="fault"):
        quarantine.check(LEDGER, "two")


@pytest.mark.parametrize("found", ["3", None, {"version": 3}])
def test_a_fault_is_not_lifted_by_any_version(tmp_path: Path, found: object) -> None:
    error = LedgerRefusal("release-mismatch", "No.", found=found)
    entry = Quarantined.of(error, ledger=LEDGER, task="one", evidence="evidence-1.json", at=5.0)
    assert entry == quarantined("one")
    assert not entry.readable


def session(**changes: object) -> SessionRecord:
    fields: dict[str, object] = {
        "identity_key": b"i" * 32,
        "task": "stats",
        "session": "5e55" * 16,
        "manifest": b"",
        "model_version": 3,
        "model_digest": b"m" * 32,
        "survivors_min": 2,
        "partner_keys": (),
        "contribution": "c",
        "state": b"secret state",
        "effects": (),
        "cursor": 0,
        "ctx": b"x" * 32,
        "models": ((3, b"m" * 32),),
    }
    return SessionRecord(**{**fields, **changes})  # type: ignore[arg-type]


def test_evidence_is_readable_private_and_holds_what_the_ledger_showed(tmp_path: Path) -> None:
    shown: dict[str, object] = {
        "record": {"release": 7},
        "entry": b"{}\xff",
        "proof": [b"h" * 32],
        "checkpoint": b"n\n",
    }
    error = LedgerRefusal("release-mismatch", "No.", expected={"a": {1}}, found=7, evidence=shown)
    path = keep_evidence(journal_in(tmp_path), error, session(), LEDGER, 12.5)
    assert path.name == f"evidence-{(b'x' * 32).hex()}.json"
    assert os.stat(path).st_mode & 0o777 == 0o600
    found = json.loads(path.read_text())
    assert found["reason"] == "release-mismatch"
    assert (found["expected"], found["found"], found["at"]) == ({"a": [1]}, 7, 12.5)
    assert found["record"] == {"release": 7}
    assert base64.b64decode(found["entry"]) == b"{}\xff"
    assert (found["proof"], found["checkpoint"]) == ([(b"h" * 32).hex()], "n\n")
    assert found["ledger"] == LEDGER
    known = found["known"]
    assert known["models"] == [[3, (b"m" * 32).hex()]]
    assert (known["model_version"], known["model_digest"]) == (3, (b"m" * 32).hex())
    assert "secret" not in path.read_text()
    assert b"secret state".hex() not in path.read_text()


def test_a_session_that_has_no_context_yet_names_its_file_by_itself(tmp_path: Path) -> None:
    error = LedgerRefusal("ledger-forked", "No.")
    path = keep_evidence(journal_in(tmp_path), error, session(ctx=b""), LEDGER, 0.0)
    assert path.name == f"evidence-{'5e55' * 16}.json"


def test_outside_of_a_session_the_first_evidence_of_a_reason_stays(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    paths = []
    for note in (b"first\n", b"second\n"):
        error = LedgerRefusal("ledger-forked", "No.", evidence={"checkpoint": note})
        paths.append(keep_evidence(journal, error, None, LEDGER, 0.0))
    assert paths[0] == paths[1]
    assert json.loads(paths[0].read_text())["checkpoint"] == "first\n"
    error = LedgerRefusal("ledger-rolled-back", "No.", evidence={"checkpoint": b"third\n"})
    assert keep_evidence(journal, error, None, LEDGER, 0.0) != paths[0]
    error = LedgerRefusal("ledger-forked", "No.", evidence={"checkpoint": b"fourth\n"})
    assert keep_evidence(journal, error, None, OTHER, 0.0) != paths[0]
