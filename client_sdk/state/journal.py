"""What a device must remember across a kill, sealed and on disk before anything is done with it.

One state folder belongs to one device and one process at a time:

``storage.key``    the key file (:mod:`client_sdk.state.keystore`)
``lock``           held while a client runs
``owner``          whose folder it is (:mod:`client_sdk.state.owner`)
``session``        the one unfinished session: machine state, effects not known to be done, cursor
``vector``         its masked payload, written before the session names it
``contribution``   the values that a contributor computed, so that a restart does not train again
``account``        what this device has spent, over all tasks
``data``           which data set it spends of (:mod:`client_sdk.accounts.data_door`)
``server-time``    the latest time of the aggregator's that it believed
``checkpoint-*``   the last checkpoint seen, per ledger
``failing``        tasks in which training fails in a row (:mod:`client_sdk.rounds.failing`)
``quarantine``     tasks that are refused on a ledger (:mod:`client_sdk.ledger.evidence`)
``evidence-*``     what such a ledger showed: JSON, not sealed
``places-*``       which example is at which place, per schedule (:mod:`client_sdk.state.places`)
``units-*``        which person or document is at which place, per schedule
``usage``          what was used of limits per period (:mod:`client_sdk.accounts.usage`)
``forgetting``     the device is being forgotten (:mod:`client_sdk.forgetting`)
``second-look``    when to look for lost charges once more (:mod:`client_sdk.accounts.recovery`)
``control-*``      SCAFFOLD's control variate, per task (:mod:`client_sdk.rounds.scaffold_control`)
``revocations-*``  the newest revocation list seen, per partner
``models/``        one model, or the part that has come of it

The rule that makes a resumed device safe: journal (state, effects), then perform the effects; after
a restart perform the journalled effects again, the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

import msgspec
import numpy as np

from client_sdk.errors import StateError
from client_sdk.failures import TrainingFailure
from client_sdk.state.durable_files import (
    make_private_folder,
    read_state,
    remove_durably,
    unwritable,
    write_durably,
)
from client_sdk.state.keystore import StorageKey
from client_sdk.state.models import models_folder
from secagg.client import Effect, Failed, Finished, ProvideVector, Send, Upload
from secagg.files.locks import lock_file
from secagg.messages import AdmittedModel
from secagg.secret import Secret

_VERSION = 1
_HEX_128 = re.compile("[0-9a-f]{32}")
_M = TypeVar("_M")


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class StoredEffect(_Record, frozen=True, kw_only=True):
    """An effect of the machine. ``kind`` is its class name; an upload's payload lies beside."""

    kind: str
    blobs: tuple[bytes, ...] = ()
    numbers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


class SessionRecord(_Record, frozen=True, kw_only=True):
    """One exchange, from its advert to its receipt.

    ``state`` is the machine's snapshot, ``effects`` what is to be done (again), ``cursor`` the
    number of messages taken from the mailbox. ``joined_at``: the server's time at which the roster
    was accepted, and ``ctx`` its context; empty before. ``masking_set_size`` and ``survivors``: of
    the sets that were confirmed; 0 before. ``payload_digest``: SHA-256 of the payload beside, empty
    without one. ``cohort`` to ``models`` (version, digest): of the roster; empty before, or where
    an older software did not keep them. ``ledger_failures``: how often the ledger failed to prove
    what the session waits for.
    """

    version: int = _VERSION
    identity_key: bytes
    task: str
    session: str
    manifest: bytes
    model_version: int
    model_digest: bytes
    survivors_min: int
    partner_keys: tuple[bytes, ...]
    contribution: str
    state: bytes
    effects: tuple[StoredEffect, ...]
    cursor: int
    joined_at: float = 0.0
    ctx: bytes = b""
    payload_digest: bytes = b""
    masking_set_size: int = msgspec.field(default=0, name="masking_set")  # as it was stored
    survivors: int = 0
    cohort: bytes = b""
    cohort_size: int = 0
    roster_digest: bytes = b""
    models: tuple[tuple[int, bytes], ...] = ()
    ledger_failures: int = 0


class _StoredArray(_Record, frozen=True, kw_only=True):
    name: str
    dtype: str
    data: bytes


class StoredLeftOut(_Record, frozen=True, kw_only=True):
    """An example that counted as zero, as :class:`client_sdk.training.dataset.LeftOut`."""

    index: int
    reason: str
    sentence: str


class StoredCut(_Record, frozen=True, kw_only=True):
    """An example that counted, but not whole, as :class:`client_sdk.training.dataset.Cut`."""

    index: int
    tokens: int
    limit: int


class Contribution(_Record, frozen=True, kw_only=True):
    """A contributor's values for one model version. ``failed``: replaced by zeros.

    ``name`` is random; the account remembers which contribution a charge was for. ``control``:
    SCAFFOLD's c of that version, float32, little-endian. ``model_version``: -1 where an older
    software journalled it. ``left_out``: the examples that counted as zero in it; ``cut``: those
    that counted, but not whole; ``examples``: places of the data set, -1 where nobody said.
    ``count``: charges of the task's schedule before it, from which its part follows; None without a
    schedule. ``owned``: examples that named a unit which the task does not protect as one.
    ``failure``: why nothing of the examples is in it.
    """

    version: int = _VERSION
    name: str
    manifest_digest: bytes
    model_digest: bytes
    failed: str | None
    arrays: tuple[_StoredArray, ...]
    control: bytes = b""
    model_version: int = -1
    left_out: tuple[StoredLeftOut, ...] = ()
    cut: tuple[StoredCut, ...] = ()
    examples: int = -1
    count: int | None = None
    owned: int = 0
    failure: TrainingFailure | None = None

    @staticmethod
    def of(
        manifest_digest: bytes,
        model_digest: bytes,
        values: Mapping[str, np.ndarray],
        failed: str | None,
        control: np.ndarray | None = None,
        model_version: int = -1,
        count: int | None = None,
    ) -> Contribution:
        """Wrap float64 or int64 arrays; the name is drawn at random."""
        return Contribution(
            name=os.urandom(16).hex(),
            manifest_digest=manifest_digest,
            model_digest=model_digest,
            failed=failed,
            arrays=tuple(
                _StoredArray(
                    name=name, dtype=array.dtype.newbyteorder("<").str, data=array.tobytes()
                )
                for name, array in values.items()
            ),
            control=b"" if control is None else control.astype("<f4").tobytes(),
            model_version=model_version,
            count=count,
        )

    def values(self) -> dict[str, np.ndarray]:
        return {
            array.name: np.frombuffer(array.data, np.dtype(array.dtype)) for array in self.arrays
        }


def store_effects(effects: tuple[Effect, ...]) -> tuple[StoredEffect, ...]:
    return tuple(_store_effect(effect) for effect in effects)


def _store_effect(effect: Effect) -> StoredEffect:
    kind = type(effect).__name__
    match effect:
        case Send(message):
            return StoredEffect(kind=kind, blobs=(message,))
        case ProvideVector(ctx, masking_set_size, noise_seeds, models, staleness):
            return StoredEffect(
                kind=kind,
                blobs=(
                    ctx,
                    *(model.digest for model in models),
                    *(seed.reveal() for seed in noise_seeds),
                ),
                numbers=(masking_set_size, staleness, *(model.version for model in models)),
            )
        case Upload(header, _):
            return StoredEffect(kind=kind, blobs=(header,))
        case Finished(release, leaf_index):
            return StoredEffect(kind=kind, numbers=(release, leaf_index))
        case Failed(reason, message, culprit):
            return StoredEffect(kind=kind, texts=(reason, message), blobs=(culprit or b"",))
    raise TypeError(f"unknown effect {kind}")


def load_effect(stored: StoredEffect, payload: bytes | None) -> Effect:
    """The effect again; ``payload`` is the masked vector beside the session.

    Raises:
        StateError: ``state-damaged``.
    """
    match stored:
        case StoredEffect(kind="Send", blobs=(message,)):
            return Send(message)
        case StoredEffect(
            kind="ProvideVector", blobs=(ctx, *blobs), numbers=(masking_set_size, *numbers)
        ):
            staleness, *versions = numbers or [0]  # journals before several models lack it
            digests, seeds = blobs[: len(versions)], blobs[len(versions) :]
            models = tuple(map(AdmittedModel, versions, digests))
            return ProvideVector(
                ctx, masking_set_size, tuple(map(Secret, seeds)), models, staleness
            )
        case StoredEffect(kind="Upload", blobs=(header,)) if payload is not None:
            return Upload(header, payload)
        case StoredEffect(kind="Finished", numbers=(release, leaf_index)):
            return Finished(release, leaf_index)
        case StoredEffect(kind="Failed", texts=(reason, message), blobs=(culprit,)):
            return Failed(reason, message, culprit or None)
    raise StateError("state-damaged", f"A journalled effect {stored.kind!r} does not fit.")


_OWN = (
    *("session", "vector", "contribution", "account", "data", "server-time", "owner"),
    *("second-look", "quarantine", "usage", "checkpoint-*", "evidence-*", "places-*", "units-*"),
    *("control-*", "revocations-*", "failing"),
)


def own_files(folder: Path) -> list[Path]:
    """What clients keep in a state folder, but key, lock and models; the session first.

    With what a kill left of a file that was being replaced.
    """
    names = [each for name in _OWN for each in (name, f"{name}.new")]
    found = dict.fromkeys(path for name in names for path in sorted(folder.glob(name)))
    return [path for path in found if path.is_file()]


class Lock:
    """Exclusive use of a state folder, by this object in this process. The kernel frees it."""

    def __init__(self, folder: Path, *, reading: bool = False) -> None:
        """``reading``: nothing will be written, so the folder may be read-only."""
        self._path = folder / "lock"
        self._reading = reading
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Lock:
        """Raises: StateError: ``state-in-use``, ``state-unwritable``."""
        try:
            file = open(self._path, "rb" if self._reading else "ab")
        except FileNotFoundError as error:
            if self._reading:
                return self  # no client has ever run on it
            raise unwritable(self._path, error) from error
        except OSError as error:
            raise unwritable(self._path, error) from error
        try:
            lock_file(file)
        except OSError as error:
            file.close()
            raise StateError(
                "state-in-use",
                f"The state folder {self._path.parent} is in use.",
                remedy="If a run of this app is under way on it, stop that and wait for its end. "
                "Another device, or a client beside this one, has a folder of its own.",
            ) from error
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Journal:
    """Sealed records of one state folder. Every write is on disk when it returns."""

    def __init__(self, folder: Path, key: StorageKey) -> None:
        """Raises: StateError: as :func:`client_sdk.state.models.models_folder`."""
        make_private_folder(folder)
        self.models = models_folder(folder)
        self._folder = folder
        self._key = key

    @staticmethod
    def has_session(folder: Path) -> bool:
        """Whether an unfinished session lies in the folder; no key needed."""
        return (folder / "session").exists()

    # ---- the session and its payload

    def load_session(self) -> SessionRecord | None:
        return self.load_record("session", SessionRecord)

    def save_session(self, record: SessionRecord) -> None:
        self._save("session", record)

    def save_payload(self, payload: bytes) -> bytes:
        """Keep a masked payload; returns the digest that the session record must name."""
        write_durably(self._folder / "vector", self._key.seal("vector", payload))
        return hashlib.sha256(payload).digest()

    def load_payload(self, payload_digest: bytes) -> bytes | None:
        """The payload that a session names; None if it names none."""
        if not payload_digest:
            return None
        try:
            payload = self._key.open("vector", (self._folder / "vector").read_bytes())
        except OSError as error:
            raise StateError("state-damaged", "The masked vector is gone.") from error
        if hashlib.sha256(payload).digest() != payload_digest:
            raise StateError("state-damaged", "The masked vector is not the session's.")
        return payload

    def end_session(self) -> None:
        """Forget the session and its secrets."""
        remove_durably(self._folder / "session")
        remove_durably(self._folder / "vector")

    # ---- the contribution

    def load_contribution(self) -> Contribution | None:
        return self.load_record("contribution", Contribution)

    def save_contribution(self, contribution: Contribution) -> None:
        self._save("contribution", contribution)

    def drop_contribution(self) -> None:
        remove_durably(self._folder / "contribution")

    def has_checkpoints(self) -> bool:
        """Whether the checkpoint of any ledger is remembered."""
        return any(self._folder.glob("checkpoint-*"))

    # ---- small records of other modules

    def load_blob(self, name: str) -> bytes | None:
        sealed = read_state(self._folder / name)
        return None if sealed is None else self._key.open(name, sealed)

    def save_blob(self, name: str, content: bytes) -> None:
        write_durably(self._folder / name, self._key.seal(name, content))

    def fingerprint(self, name: str, content: bytes) -> str:
        """As :meth:`client_sdk.state.keystore.StorageKey.fingerprint`."""
        return self._key.fingerprint(name, content)

    def path(self, name: str) -> Path:
        return self._folder / name

    def save_open(self, name: str, content: bytes) -> Path:
        """Keep a file that others are to read: not sealed, mode 0600."""
        write_durably(self.path(name), content)
        return self.path(name)

    def keep_newest(self, prefix: str, count: int) -> None:
        """Remove the records named ``prefix`` and 32 hex digits but the ``count`` newest."""
        found = [
            path
            for path in self._folder.glob(f"{prefix}*")
            if _HEX_128.fullmatch(path.name.removeprefix(prefix))
        ]
        found.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in found[:-count]:
            remove_durably(path)

    def load_record(self, name: str, kind: type[_M]) -> _M | None:
        """A record that was saved as MessagePack; None if there is none.

        Raises:
            StateError: ``state-damaged``.
        """
        encoded = self.load_blob(name)
        if encoded is None:
            return None
        try:
            return msgspec.msgpack.decode(encoded, type=kind)
        except (msgspec.MsgspecError, ValueError) as error:
            raise StateError(
                "state-damaged",
                f"The journalled {name} does not parse: {error}.",
                remedy=f"Restore {name!r} from a backup of the state folder.",
            ) from error

    def _save(self, name: str, record: _Record) -> None:
        self.save_blob(name, msgspec.msgpack.encode(record))
