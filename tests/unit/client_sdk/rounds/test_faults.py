"""What is told of a ledger that is at fault outside of a session."""

from __future__ import annotations

from pathlib import Path

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.rounds.faults import name_evidence, tell_fault
from tests.kits.contributing import Setting
from tests.kits.tasks import VERIFIER


async def test_evidence_is_named_once_however_often_it_is_told(tmp_path: Path) -> None:
    """A second look names it first, the run that it ends tells it afterwards."""
    setting = Setting(tmp_path)
    device = setting.device
    device.ledger = LedgerWatch(device.transport, device.journal, VERIFIER)
    error = LedgerRefusal("ledger-forked", "A fork.", remedy="Ask.", evidence={"n": 1})
    path = await name_evidence(device, error)
    await tell_fault(device, "stats", error)
    assert error.remedy == f"Ask. The evidence is in {path}."
    assert [event.detail["evidence"] for event in setting.events] == [str(path)]


async def test_without_evidence_no_file_is_named(tmp_path: Path) -> None:
    error = LedgerRefusal("ledger-deadline", "Late.", remedy="Wait.")
    assert await name_evidence(Setting(tmp_path).device, error) is None
    assert error.remedy == "Wait."
