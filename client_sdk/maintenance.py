"""A state folder from outside of a run: what is pending, what is refused, and how to end both.

A reset takes a session's machine and masked vector, and nothing else: the account, what it says was
given, the remembered checkpoints and the evidence stay, so it never lets a device say twice what it
may say once.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from client_sdk.accounts.data_door import look_at
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.errors import StateError
from client_sdk.ledger.evidence import Quarantine, Quarantined
from client_sdk.rounds.failing import FailingTask, FailingTasks
from client_sdk.state.journal import Journal, Lock
from client_sdk.state.keystore import StorageKey, open_storage_key
from client_sdk.state.owner import own_journal
from secagg.client import restore
from secagg.errors import SecaggError
from secagg.files.folders import file_in_the_way

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Pending:
    """An unfinished session. ``phase``: of its machine, or ``unreadable``; then the rest is empty.

    ``session``: hex name at the aggregator. ``ledger_failures``: how often the ledger did not show
    what the session waits for.
    """

    phase: str
    task: str = ""
    session: str = ""
    model_version: int = -1
    ledger_failures: int = 0


class StateFolder:
    """One device's state folder, while no client runs on it."""

    def __init__(self, folder: Path, key: StorageKey, owner: bytes | None = None) -> None:
        """``owner``: identity key of the device whose folder it must be; None: of any."""
        self.folder = folder
        self._key = key
        self._owner = owner

    @classmethod
    def open(cls, folder: Path, passphrase: str | None = None) -> StateFolder:
        """A folder that a client made.

        Raises:
            StateError: ``state-missing``: no client has used the folder; or as
                :func:`client_sdk.state.keystore.open_storage_key`.
        """
        if not (folder / "storage.key").is_file():
            file = file_in_the_way(folder)
            raise StateError(
                "state-missing",
                f"{folder} is not a device's state folder"
                + (f": {file} is a file." if file else "."),
                remedy="Name the folder that the device runs with.",
            )
        return cls(folder, open_storage_key(folder, passphrase))

    def pending(self) -> Pending | None:
        """The unfinished session; None if there is none.

        Raises:
            StateError: ``state-in-use``.
        """
        with Lock(self.folder, reading=True):
            if not Journal.has_session(self.folder):
                return None
            with contextlib.suppress(SecaggError):
                record = self._journal().load_session()
                if record is not None:
                    return Pending(
                        restore(record.state).phase,
                        record.task,
                        record.session,
                        record.model_version,
                        record.ledger_failures,
                    )
            return Pending(UNREADABLE)

    def reset_session(self) -> bool:
        """End the unfinished session and touch nothing else; whether there was one.

        It need not be readable. Its cohort goes on without this device; charges stay.

        Raises:
            StateError: ``state-in-use``; ``state-of-another-device``, for an owner.
        """
        with Lock(self.folder):
            pending = Journal.has_session(self.folder)
            self._journal().end_session()
            return pending

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Tasks that are refused on a ledger.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        with Lock(self.folder, reading=True):
            return Quarantine(self._journal()).entries

    def release_quarantine(self, task: str) -> tuple[Quarantined, ...]:
        """Admit a task again; the entries that were lifted. The evidence files stay.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        with Lock(self.folder):
            return Quarantine(self._journal()).release(task)

    def failing(self) -> tuple[FailingTask, ...]:
        """Tasks in which training failed, and how often in a row.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        with Lock(self.folder, reading=True):
            return FailingTasks(self._journal()).entries

    def try_again(self, task: str) -> bool:
        """Take part again in a task in which training failed; whether any failure was counted.

        Raises:
            StateError: ``state-in-use``, ``state-damaged``.
        """
        with Lock(self.folder):
            return FailingTasks(self._journal()).clear(task)

    def account(self, delta: float) -> DeviceAccount:
        """What the folder has spent, and what counts with it; also while its device runs.

        ``delta``: that of totals.

        Raises:
            StateError: ``state-damaged``, ``data-account-missing``.
        """
        journal = Journal(self.folder, self._key)
        account, data = DeviceAccount(journal, delta), look_at(journal)
        if data is not None:
            account.share(data)
        return account

    def _journal(self) -> Journal:
        if self._owner is None:
            return Journal(self.folder, self._key)
        return own_journal(self.folder, self._key, self._owner)
