"""SCAFFOLD's device state: c_k, moved only by what a release provably holds.

A round's change of c_k is -c - dy / (K eta) (Karimireddy et al., ICML 2020, algorithm 1, option
II), where dy is what was *sent*: after the clip and the rounding, so that the server, which derives
the sum of the changes from the sum of the dy, means the same numbers. It is written down before the
masked vector is, by the cohort's context, and added to c_k when the release of that very context is
proven to hold this device: by its receipt, or, where that was lost, by the ledger, which
:func:`settle` asks before the next training. Nothing else moves c_k: a drop-out, an abort or a
refusal leaves it. A release whose receipt was lost must not be forgotten: the server has counted
the device's change, and what c holds beyond the mean of the c_k stays in it for good.

One sealed record holds c_k, the changes that wait and the contexts that were added, so that each
step is one atomic write and doing it twice changes nothing.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import StateError
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.payload import control_change
from client_sdk.state.journal import Contribution, Journal
from client_sdk.threads import finish_in_thread
from secagg.manifest import Manifest
from secagg.ring import Lanes

# A task has one open cohort at a time, so an older cohort's end is in the ledger when the next one
# masks; what waits beyond these few never left the device.
_WAITING_MAX = 4
_ADDED_MAX = 64
_TASKS_MAX = 4  # control variates of so many tasks lie on the disk; the oldest goes first


class Waiting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A change that waits for its receipt. ``change``: float64[d], little-endian.

    ``since``: leaves of the ledger that hold no record of the cohort.
    """

    ctx: bytes
    change: bytes
    since: int


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``own``: c_k, float64[d], little-endian; empty means zeros. ``added``: contexts."""

    version: int = 1
    own: bytes = b""
    waiting: tuple[Waiting, ...] = ()
    added: tuple[bytes, ...] = ()


class DeviceControl:
    """The control variate of one device in one task."""

    def __init__(self, journal: Journal, manifest: Manifest, manifest_digest: bytes) -> None:
        self._journal = journal
        self._manifest = manifest
        self._length = manifest.segments[0].length
        self._name = "control-" + manifest_digest.hex()[:32]
        self._record = journal.load_record(self._name, _Record) or _Record()
        if len(self._record.own) not in (0, 8 * self._length):
            raise StateError(
                "state-damaged",
                "The control variate has another length.",
                expected=8 * self._length,
                found=len(self._record.own),
            )

    @property
    def own(self) -> NDArray[np.float64]:
        """c_k; zeros before the first release."""
        if not self._record.own:
            return np.zeros(self._length)
        return np.frombuffer(self._record.own, "<f8")

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """Oldest first."""
        return self._record.waiting

    def correction(self, control: NDArray[np.float32]) -> NDArray[np.float64]:
        """c - c_k, float64[d], for a model whose control variate is ``control``."""
        return control - self.own

    def expect(self, ctx: bytes, contribution: Contribution, vector: Lanes, since: int = 0) -> None:
        """Write down what a release of ``ctx`` will add to c_k; on disk when it returns.

        Args:
            vector: the encoded payload before its mask, lanes[p].
            since: leaves of the ledger now.
        """
        control = np.frombuffer(contribution.control, "<f4").astype(np.float64)
        change = control_change(self._manifest, control, vector, ctx).astype("<f8")
        others = [entry for entry in self._record.waiting if entry.ctx != ctx]
        waiting = [*others, Waiting(ctx=ctx, change=change.tobytes(), since=since)]
        self._save(msgspec.structs.replace(self._record, waiting=tuple(waiting[-_WAITING_MAX:])))

    def add(self, ctx: bytes) -> None:
        """Add the change that waits for ``ctx``, once; on disk when it returns.

        Raises:
            StateError: ``state-damaged``: no change was written down for this release.
        """
        record = self._record
        if ctx in record.added:
            return
        change = next((entry.change for entry in record.waiting if entry.ctx == ctx), None)
        if change is None:
            raise StateError(
                "state-damaged", "The control variate knows nothing of this release.", found=ctx
            )
        own = self.own + np.frombuffer(change, "<f8")
        self._save(
            msgspec.structs.replace(
                record,
                own=own.astype("<f8").tobytes(),
                waiting=tuple(entry for entry in record.waiting if entry.ctx != ctx),
                added=(*record.added, ctx)[-_ADDED_MAX:],
            )
        )

    def forget(self, ctx: bytes) -> None:
        """The cohort ended without this device: its change is nothing."""
        self._waiting_now([entry for entry in self.waiting if entry.ctx != ctx])

    def looked(self, ctx: bytes, size: int) -> None:
        """The first ``size`` leaves of the ledger do not speak of the cohort."""
        replace = msgspec.structs.replace
        self._waiting_now([replace(e, since=size) if e.ctx == ctx else e for e in self.waiting])

    def _waiting_now(self, waiting: list[Waiting]) -> None:
        if tuple(waiting) != self._record.waiting:
            self._save(msgspec.structs.replace(self._record, waiting=tuple(waiting)))

    def _save(self, record: _Record) -> None:
        self._journal.save_blob(self._name, msgspec.msgpack.encode(record))
        self._journal.keep_newest("control-", _TASKS_MAX)
        self._record = record


async def settle(
    control: DeviceControl,
    ledger: LedgerWatch,
    *,
    task: str,
    manifest_digest: bytes,
    identity_key: bytes,
) -> None:
    """Ask the ledger about each change whose receipt never came.

    Raises:
        LedgerRefusal: the ledger's answer does not verify.
    """
    for entry in control.waiting:
        held, size = await ledger.holds(
            entry.ctx,
            task=task,
            manifest_digest=manifest_digest,
            identity_key=identity_key,
            since=entry.since,
        )
        if held is None:
            await finish_in_thread(control.looked, entry.ctx, size)
        else:
            await finish_in_thread(control.add if held else control.forget, entry.ctx)
