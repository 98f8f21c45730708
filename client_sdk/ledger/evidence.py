"""Evidence against a ledger, and the tasks that this device refuses on it from then on.

A release's record that is proven to be in the log and does not say what this device knows of its
cohort is the operator's fault, signed by the operator's key. The device keeps what it was shown in
a file for others to check, and takes part in that task on that ledger no more. Everything else
goes on: other tasks, the privacy account, the remembered checkpoint.

A record of a later version than this software reads is not such a fault, and nothing can be said of
it: the task is refused until the software reads that version.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from client_sdk.errors import LedgerRefusal
from client_sdk.state.journal import Journal, SessionRecord
from dp.ledger.parsing import is_known_version

_NAME = "quarantine"
_NOTES = ("checkpoint", "remembered")  # signed notes are text
UNREAD = "record-version"
QUARANTINED_FOR = ("release-mismatch", "contributor-missing", UNREAD)


class Quarantined(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """A task that is refused on a ledger. ``evidence``: name of a file in the state folder.

    ``at``: Unix seconds. ``version``: of a release's record, if this software did not read it.
    """

    ledger: str
    task: str
    reason: str
    evidence: str
    at: float
    version: int = 0

    @classmethod
    def of(
        cls, error: LedgerRefusal, *, ledger: str, task: str, evidence: str, at: float
    ) -> Quarantined:
        version = error.found if error.reason == UNREAD and isinstance(error.found, int) else 0
        return cls(
            ledger=ledger,
            task=task,
            reason=error.reason,
            evidence=evidence,
            at=at,
            version=version,
        )

    @property
    def readable(self) -> bool:
        """Whether this software reads by now what it did not read then."""
        record = {"type": "release", "version": self.version}
        return self.reason == UNREAD and is_known_version(record)


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int = 1
    entries: tuple[Quarantined, ...] = ()


class Quarantine:
    """The refused tasks of one state folder."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def entries(self) -> tuple[Quarantined, ...]:
        return (self._journal.load_record(_NAME, _Record) or _Record()).entries

    def check(self, ledger: str, task: str) -> None:
        """Return if the task is not refused on this ledger (its verifier key).

        Raises:
            LedgerRefusal: ``ledger-quarantined``.
        """
        for entry in self.entries:
            if (entry.ledger, entry.task) != (ledger, task) or entry.readable:
                continue
            if entry.reason == UNREAD:
                raise LedgerRefusal(
                    "ledger-quarantined",
                    f"This device takes no part in {task!r}: the ledger's records are of a later "
                    "version than this software reads, so no release could be verified.",
                    expected="records of a version that this software reads",
                    found=entry.version,
                    remedy="Update this device's software: the task is admitted again then.",
                )
            raise LedgerRefusal(
                "ledger-quarantined",
                f"This device takes no part in {task!r} any more: the ledger showed a record "
                "that contradicts what the device knows. That is the operator's fault.",
                found=entry.reason,
                remedy=f"Show {self._journal.path(entry.evidence)} to the operator; "
                "secagg session release-quarantine lifts this.",
            )

    def add(self, entry: Quarantined) -> None:
        """Refuse a task; on disk when it returns."""
        others = self._without(entry.ledger, entry.task)
        self._save((*others, entry))

    def release(self, task: str) -> tuple[Quarantined, ...]:
        """Refuse a task no more, on any ledger; the entries that were lifted. Evidence stays."""
        lifted = tuple(entry for entry in self.entries if entry.task == task)
        if lifted:
            self._save(tuple(entry for entry in self.entries if entry.task != task))
        return lifted

    def _without(self, ledger: str, task: str) -> tuple[Quarantined, ...]:
        return tuple(e for e in self.entries if (e.ledger, e.task) != (ledger, task))

    def _save(self, entries: tuple[Quarantined, ...]) -> None:
        self._journal.save_blob(_NAME, msgspec.msgpack.encode(_Record(entries=entries)))


def keep_evidence(
    journal: Journal, error: LedgerRefusal, session: SessionRecord | None, ledger: str, now_s: float
) -> Path:
    """Write what the ledger showed, and what this session knows, as JSON (mode 0600).

    Nothing in it is secret. Writing it again for a session replaces the same file; outside of one
    (at check-in) the first of each reason stays, so that a ledger cannot push it out.
    """
    if session is None:
        name = f"evidence-{error.reason}-{hashlib.sha256(ledger.encode()).hexdigest()[:16]}.json"
        if journal.path(name).exists():
            return journal.path(name)
    else:
        name = f"evidence-{session.ctx.hex() or session.session}.json"
    known = {} if session is None else _known(session)
    content = {
        "reason": error.reason,
        "message": error.message,
        "expected": error.expected,
        "found": error.found,
        "ledger": ledger,
        "at": now_s,
        "known": known,
        **error.evidence,
    }
    return journal.save_open(name, json.dumps(_shown(content), indent=1).encode())


def _known(session: SessionRecord) -> dict[str, object]:
    return {
        "task": session.task,
        "session": session.session,
        "ctx": session.ctx,
        "cohort": session.cohort,
        "cohort_size": session.cohort_size,
        "roster_digest": session.roster_digest,
        "masking_set_size": session.masking_set_size,
        "survivors": session.survivors,
        "models": [[version, digest] for version, digest in session.models],
        "model_version": session.model_version,
        "model_digest": session.model_digest,
    }


def _shown(value: object, key: str = "") -> object:
    """JSON's types: signed notes as text, entries as base64, other bytes as hex."""
    match value:
        case bytes() if key in _NOTES:
            return value.decode("utf-8", "replace")
        case bytes() if key == "entry":
            return base64.b64encode(value).decode()
        case bytes():
            return value.hex()
        case Mapping():
            return {str(name): _shown(item, str(name)) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_shown(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
    return str(value)
