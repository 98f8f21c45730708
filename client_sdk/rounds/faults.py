"""A ledger that is at fault: the evidence is kept, and the app is told where."""

from __future__ import annotations

from pathlib import Path

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.evidence import keep_evidence
from client_sdk.rounds.device import RunningDevice
from client_sdk.state.journal import SessionRecord
from client_sdk.threads import finish_in_thread


async def keep(
    device: RunningDevice, error: LedgerRefusal, record: SessionRecord | None = None
) -> Path:
    """Keep what the ledger showed. ``record``: of the session that it ended; None: outside."""
    return await finish_in_thread(
        keep_evidence, device.journal, error, record, device.ledger.verifier, device.time.now()
    )


async def name_evidence(device: RunningDevice, error: LedgerRefusal) -> Path | None:
    """Keep what the ledger showed outside of a session, and name the file in the error, once."""
    if not error.evidence:
        return None
    path = await keep(device, error)
    named = f"The evidence is in {path}."
    if named not in (error.remedy or ""):
        error.remedy = " ".join((*filter(None, (error.remedy,)), named))
    return path


async def tell_fault(device: RunningDevice, task: str, error: LedgerRefusal) -> None:
    """Say that the ledger is at fault outside of a session, and where the evidence lies."""
    kept = await name_evidence(device, error)
    shown = {} if kept is None else {"evidence": str(kept)}
    await device.emit("aborted", task, reason=error.reason, message=str(error), **shown)
