"""Forgetting a device: its identity, its journal and what it kept of models go; the account stays.

What was spent of the data outlives the device, since the data do: it lies in the record of the data
set, or else alone in the state folder. It goes too only where the app says so, and no other folder
counts on it.

A marker is written first and removed last. A process that is killed in between leaves a folder with
which no client runs, and the next call goes on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from client_sdk.accounts.data_account import DataAccount
from client_sdk.accounts.data_door import DataDoor, drop_record
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.errors import StateError
from client_sdk.state.durable_files import read_state, remove_durably, write_durably
from client_sdk.state.journal import Journal, own_files
from client_sdk.state.keystore import FILE as KEY_FILE
from client_sdk.state.keystore import StorageKey, drop_storage_key
from client_sdk.state.models import forget_models
from client_sdk.state.owner import own_journal
from secagg.client import restore
from secagg.errors import SecaggError
from secagg.hashing import digest

MARKER = "forgetting"
_ACCOUNT = ("account", "checkpoint-*", "places-*", "units-*", "usage")
_MASKED = ("uploading", "confirmed", "unmasked")


class _Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``identity``: digest of the device's key. ``account``: as :class:`Forgotten` has it."""

    version: int = 1
    identity: bytes
    account: str


@dataclass(frozen=True)
class Forgotten:
    """What became of a device that was forgotten.

    Attributes:
        removed: files that are gone.
        kept: files that stay, with the account in them; a file of others too, as far as it kept the
            folder from going.
        account: where what was spent still counts: ``data`` or ``user`` (the record that all
            folders of the data set, or of the user, share), ``folder`` (the state folder alone);
            ``empty``: nothing was spent; ``gone``: it was forgotten too.
        charges: task -> cohorts that the device was charged for, as far as it still knew.
        identity: whether the enrolment bundle is gone; False: the app holds it, not a file.
    """

    removed: tuple[Path, ...]
    kept: tuple[Path, ...]
    account: str
    charges: Mapping[str, int] = field(default_factory=dict)
    identity: bool = True

    @property
    def lasting(self) -> tuple[str, ...]:
        """What nobody can take back, a sentence each."""
        said = [
            "Sums that were released stay released, with what this device gave to them, and so do "
            "the models that were made of them.",
            "The ledger keeps for ever a pseudonym of this device for each cohort that it was in. "
            "It is a digest: it shows that one device more took part, and not which, unless "
            "somebody has kept the device's identity.",
            "The partner that enrolled this device, and the aggregator, may have kept its public "
            "key, times and addresses.",
        ]
        if self.charges:
            each = ", ".join(f"{task}: {count}" for task, count in self.charges.items())
            said.insert(0, f"This device was charged for cohorts of these tasks: {each}.")
        return tuple(said)

    def text(self) -> str:
        """All of it in plain words, a sentence a line."""
        said = [f"{len(self.removed)} files of this device are gone."]
        if not self.identity:
            said.append("Its identity is in the bundle that the app holds: delete that too.")
        said.append(_ACCOUNTS[self.account])
        said += [f"Kept: {path}" for path in self.kept]
        said.append("This cannot be undone:")
        return "\n".join([*said, *self.lasting])


_ACCOUNTS = {
    "data": "What was spent of the data still counts, for all that name the same data id.",
    "user": "What was spent still counts, for all devices of this user whose data has no name.",
    "folder": "What was spent still counts for whoever uses this state folder.",
    "empty": "Nothing was spent of the data.",
    "gone": "What was spent of the data is forgotten too: the same data may be spent again.",
}


def demand_not_forgotten(folder: Path, key: StorageKey, identity_key: bytes) -> None:
    """Return if nobody has begun to forget this device; call it under the folder's lock.

    What was begun for another device of the same folder is brought to its end.

    Raises:
        StateError: ``forget-unfinished``.
    """
    marker = _marker_in(folder)
    if marker is None:
        return
    if marker.identity == _name_of(identity_key):
        raise StateError(
            "forget-unfinished",
            f"The device of {folder} was being forgotten when its process ended.",
            remedy="Call forget again, which goes on (secagg forget on the command line).",
        )
    _remove_files(folder, Journal(folder, key), marker.account)
    remove_durably(folder / MARKER)


def forget(
    folder: Path,
    key: StorageKey,
    identity_key: bytes,
    door: Callable[[Journal], DataDoor],
    *,
    bundle_file: Path | None,
    also_account: bool,
    end_session: bool,
    delta: float,
) -> Forgotten:
    """As :meth:`client_sdk.client.Client.forget`; call it under the folder's lock."""
    marker = _marker_in(folder)
    if marker is not None and marker.identity != _name_of(identity_key):
        demand_not_forgotten(folder, key, identity_key)
        marker = None
    if marker is None:
        journal = own_journal(folder, key, identity_key)
        if not end_session:
            _demand_nothing_masked(journal)
        account = DeviceAccount(journal, delta)
        data = _data_of(door(journal), account, also_account)
        if also_account and data is not None:
            _demand_alone(data, folder)
        kept = "gone" if also_account else _where(account, data)
        marker = _Marker(identity=_name_of(identity_key), account=kept)
        write_durably(folder / MARKER, msgspec.json.encode(marker))
    else:
        journal = Journal(folder, key)
        account = DeviceAccount(journal, delta)
    return _remove(folder, journal, marker.account, account, bundle_file)


def _where(account: DeviceAccount, data: DataAccount | None) -> str:
    """Where an account stays."""
    if data is not None:
        return "data" if data.named else "user"
    return "folder" if account.cohorts() else "empty"


def _remove(
    folder: Path,
    journal: Journal,
    kept: str,
    account: DeviceAccount,
    bundle_file: Path | None,
) -> Forgotten:
    charges = Counter(entry.task for entry, _ in account.own()[0])
    removed = _remove_files(folder, journal, kept)
    if bundle_file is not None and bundle_file.exists():
        remove_durably(bundle_file)
        removed.append(bundle_file)
    if kept != "folder":
        with contextlib.suppress(OSError):  # files of others stay, and so does their folder
            journal.models.rmdir()
        drop_storage_key(folder)
        removed.append(folder / KEY_FILE)
    remove_durably(folder / MARKER)
    return Forgotten(tuple(removed), (), kept, dict(charges), bundle_file is not None)


def _remove_files(folder: Path, journal: Journal, kept: str) -> list[Path]:
    """All but the key, and the account where it stays here; what is gone already is no matter."""
    if kept == "gone":
        drop_record(journal)
    stays = {path for name in _ACCOUNT for path in folder.glob(name)} if kept == "folder" else set()
    removed = [path for path in own_files(folder) if path not in stays]
    for path in removed:
        remove_durably(path)
    forget_models(journal.models)
    return removed


def _name_of(identity_key: bytes) -> bytes:
    return digest("forgotten identity", identity_key)


def sweep(folder: Path) -> tuple[Path, ...]:
    """Remove what is left of a folder whose lock nobody holds any more; the files that stay."""
    left = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    if left:
        return tuple(sorted(left))
    for path in (folder / "lock", folder / "models", folder):
        try:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        except OSError:
            return ()
    return ()


def _data_of(door: DataDoor, account: DeviceAccount, also_account: bool) -> DataAccount | None:
    """The record of the data, with all that this folder has spent in it."""
    try:
        data = door.open(account)
    except StateError as error:
        if also_account and error.reason == "data-account-missing":
            return None
        raise
    if data is not None:
        account.share(data)
    return data


def _demand_alone(data: DataAccount, folder: Path) -> None:
    """Raises: StateError: ``account-shared``."""
    others = [
        path
        for path in data.folders
        if path.absolute() != folder.absolute() and (path / KEY_FILE).exists()
    ]
    if others:
        raise StateError(
            "account-shared",
            "Other devices of this user count on what was spent of this data.",
            expected="no other state folder over the same data",
            found=[str(path) for path in others],
            remedy="Forget those first, or forget this device alone and keep the account.",
        )


def _demand_nothing_masked(journal: Journal) -> None:
    """Raises: StateError: ``session-pending``."""
    try:
        record = journal.load_session()
        phase = None if record is None else restore(record.state).phase
        masked = record is not None and (phase in _MASKED or bool(record.payload_digest))
    except SecaggError:
        phase, masked = "unreadable", True
    if masked:
        raise StateError(
            "session-pending",
            "A masked vector of this device is on its way, and its cohort waits for it.",
            found=phase,
            remedy="Finish it first (Client.resume, or run again), or forget the device all the "
            "same with end_session (--end-session): nobody else is hurt, the cohort goes on "
            "without this device, and the charge stays.",
        )


def _marker_in(folder: Path) -> _Marker | None:
    content = read_state(folder / MARKER)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=_Marker)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StateError(
            "state-damaged",
            f"{folder / MARKER} does not parse: {error}.",
            remedy=f"Remove {folder} by hand; what it was to keep lies in the data's record.",
        ) from error
