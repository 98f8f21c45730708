"""Records of data sets, shared by all state folders of one user on one device.

A registry is a folder of its own: a key file, a lock, and one sealed record for each data set,
named by a keyed fingerprint of the data's id. Neither the id nor anything of the data is in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from client_sdk.errors import StateError
from client_sdk.state.durable_files import (
    make_private_folder,
    read_state,
    remove_durably,
    unwritable,
    write_durably,
)
from client_sdk.state.keystore import FILE as _KEY
from client_sdk.state.keystore import StorageKey, open_storage_key
from dp.accounting.budget import Entry
from secagg.files.folders import demand_own_folder
from secagg.files.locks import lock_file

_RECORD = "[0-9a-f]" * 32
_KEPT = ("lock", _RECORD, f"{_RECORD}.new", f"{_RECORD}.damaged", f"{_KEY}.new", f"{_KEY}.damaged")
_LABEL = "data"
_LOCK_WAIT_S = 30.0
_LOCK_RETRY_S = 0.02
_DAMAGED = ("keystore-damaged", "state-damaged")


class Charged(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cohort's charge to one identity. ``identity``, ``aggregator`` (task key): hex."""

    identity: str
    aggregator: str
    delta: float
    entry: Entry


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A state folder that serves the data.

    ``id``: the folder's name for itself. ``path``: empty once another folder lies there.
    ``identity``, ``aggregator`` (task key), both hex, and ``not_after``, Unix seconds at which the
    certificate ends: of its device.
    """

    id: str
    path: str
    identity: str
    aggregator: str = ""
    not_after: int = 0


class DataRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of one data set.

    ``given``: as the device's account keeps it. ``renewed``: how often the app had it begun anew
    after a loss. ``lost_at``: when that last left charges out that the folder did not have itself,
    Unix seconds; 0: never.
    """

    version: int = 1
    members: tuple[Member, ...] = ()
    charges: tuple[Charged, ...] = ()
    given: dict[str, str] = {}
    renewed: int = 0
    lost_at: float = 0.0

    def holds(self, member: str, charges: int) -> bool:
        """Whether a folder is in the list and no charge has been lost since it last looked."""
        return any(m.id == member for m in self.members) and len(self.charges) >= charges

    def with_member(self, member: Member) -> DataRecord:
        """A folder is in the list once, by its id; where another one lies now, it is gone."""
        others = (
            msgspec.structs.replace(m, path="") if m.path == member.path else m
            for m in self.members
            if m.id != member.id
        )
        return msgspec.structs.replace(self, members=(*others, member))

    def with_charges(self, charges: Iterable[Charged], given: dict[str, str]) -> DataRecord:
        """Charges that are there already change nothing, and none is ever removed."""
        known = {(charge.entry.cohort, charge.identity) for charge in self.charges}
        new = [c for c in charges if (c.entry.cohort, c.identity) not in known]
        return msgspec.structs.replace(
            self, charges=(*self.charges, *new), given={**given, **self.given}
        )


class Registry:
    """The records of one folder. Writers hold :meth:`lock`; reading needs none."""

    def __init__(self, folder: Path) -> None:
        """Made on first use.

        Raises:
            StateError: as :func:`client_sdk.state.keystore.open_storage_key`.
        """
        self.folder = folder
        demand_own_folder(
            folder, "registry of data sets", (_KEY,), _KEPT, StateError, "state-folder-taken"
        )
        make_private_folder(folder)
        with _exclusive(folder / "lock"):  # two processes must not make two keys
            self._key: StorageKey = open_storage_key(folder, kept=_KEPT)

    @staticmethod
    def has_key(folder: Path) -> bool:
        return (folder / _KEY).is_file()

    @staticmethod
    def has_records(folder: Path) -> bool:
        return any(folder.glob(_RECORD))

    def tag(self, data_id: str) -> str:
        """The name of a data set's record: a keyed fingerprint of its id, hex."""
        return self._key.fingerprint(_LABEL, data_id.encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes, and other objects of this one, from writing.

        Raises:
            StateError: ``state-in-use``: another one has held it for half a minute.
        """
        with _exclusive(self.folder / "lock"):
            yield

    def load(self, tag: str) -> DataRecord | None:
        """Raises: StateError ``state-damaged``, ``state-unreadable``."""
        sealed = read_state(self.folder / tag)
        if sealed is None:
            return None
        encoded = self._key.open(_LABEL + tag, sealed)
        try:
            return msgspec.json.decode(encoded, type=DataRecord)
        except (msgspec.MsgspecError, ValueError) as error:
            raise StateError(
                "state-damaged", f"The account of a data set does not parse: {error}."
            ) from error

    def save(self, tag: str, record: DataRecord) -> None:
        """On disk when it returns; call it under :meth:`lock`."""
        write_durably(self.folder / tag, self._key.seal(_LABEL + tag, msgspec.json.encode(record)))

    def remove(self, tag: str) -> None:
        """Forget a data set's record, if it is there; call it under :meth:`lock`."""
        remove_durably(self.folder / tag)

    def set_aside(self, tag: str) -> None:
        """Move a record that does not open out of the way."""
        _set_aside(self.folder / tag)


def is_damage(error: StateError) -> bool:
    """Whether a registry or a record of it can never be read again."""
    return error.reason in _DAMAGED


def set_key_aside(folder: Path) -> None:
    """Move a key that does not parse out of the way; the records under it are lost with it."""
    _set_aside(folder / _KEY)


def _set_aside(path: Path) -> None:
    try:
        path.replace(path.with_name(path.name + ".damaged"))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    try:
        file = path.open("ab")
    except OSError as error:
        raise unwritable(path, error) from error
    with file:
        ends = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                lock_file(file)
                break
            except OSError as error:
                if time.monotonic() > ends:
                    raise StateError(
                        "state-in-use",
                        f"Another process has held {path} for {_LOCK_WAIT_S:g} s.",
                        remedy="End the process that stands still.",
                    ) from error
            time.sleep(_LOCK_RETRY_S)
        yield
