"""Which models a task was created with or released, as the ledger proves it.

What a checkpoint's size says is a peer's number: a search for a record looks at the last leaves of
the log and no further.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.files import LedgerFiles
from client_sdk.ledger.log import Proven, WatchedLog
from dp.errors import LedgerError
from dp.ledger.parsing import clip_of, model_of
from dp.tlog.tiles import TILE_WIDTH

SEARCHED_MAX = 1 << 14
"""Leaves that one search looks through (64 bundles); an offer that names a leaf needs none."""
_REMEDY = "Ask the operator; a model that no ledger names may be crafted."


class ReleasedModels:
    """Records that made a model, each proven once: the log is append-only."""

    def __init__(self, files: LedgerFiles, log: WatchedLog) -> None:
        self._files = files
        self._log = log
        self._proven: dict[tuple[str, bytes, bytes], Proven] = {}

    async def verify(
        self, digests: frozenset[bytes], *, task: str, manifest_digest: bytes, leaf_index: int
    ) -> None:
        """As :meth:`client_sdk.ledger.watch.LedgerWatch.verify_models`."""
        if leaf_index >= 0:
            (digest,) = digests
            if (task, manifest_digest, digest) not in self._proven:
                proven = await self._files.patiently(lambda: self._log.prove(leaf_index))
                self._remember(proven, digest, task, manifest_digest)
        await self._records_of(digests, task, manifest_digest)

    async def clip(self, digest: bytes, *, task: str, manifest_digest: bytes) -> float | None:
        """As :meth:`client_sdk.ledger.watch.LedgerWatch.released_clip`."""
        (record,) = await self._records_of(frozenset({digest}), task, manifest_digest)
        try:
            return clip_of(record)
        except LedgerError as error:
            raise LedgerRefusal("release-mismatch", str(error)) from error

    async def _records_of(
        self, digests: frozenset[bytes], task: str, manifest_digest: bytes
    ) -> list[dict[str, object]]:
        """For each model the record that made it, proven to be in the log."""
        known = {digest for digest in digests if (task, manifest_digest, digest) in self._proven}
        wanted = {digest.hex() for digest in digests - known}
        if wanted:
            found = await self._files.patiently(
                functools.partial(self._search, wanted, task, manifest_digest)
            )
            for model, index in found.items():
                proven = await self._files.patiently(functools.partial(self._log.prove, index))
                self._remember(proven, bytes.fromhex(model), task, manifest_digest)
        return [self._proven[task, manifest_digest, digest].record for digest in digests]

    async def _search(self, wanted: set[str], task: str, manifest_digest: bytes) -> dict[str, int]:
        """Leaf indices of the records that made these models; they remain to be proven."""
        claim = {"task": task, "manifest_digest": manifest_digest.hex()}
        size = (await self._log.advance()).checkpoint.size
        found: dict[str, int] = {}
        for number in _last_bundles(size):
            for index, record in await self._log.bundle(number, size):
                if claim.items() <= record.items() and model_of(record) in wanted:
                    found[str(model_of(record))] = index
            if len(found) == len(wanted):
                break
        if missing := wanted - found.keys():
            raise LedgerError(
                "model-not-in-ledger",
                "A model was offered that this task never released.",
                expected=f"a model of the last {SEARCHED_MAX} of {size} records",
                found=sorted(missing)[:4],
                remedy=_REMEDY,
            )
        return found

    def _remember(self, proven: Proven, digest: bytes, task: str, manifest_digest: bytes) -> None:
        claim = {"task": task, "manifest_digest": manifest_digest.hex()}
        found = {key: proven.record.get(key) for key in claim}
        model = model_of(proven.record)
        if found != claim or model != digest.hex():
            raise LedgerRefusal(
                "model-not-in-ledger",
                "The ledger's record is not about the model that it was shown for.",
                expected={**claim, "model": digest.hex()},
                found={**found, "model": model},
                remedy=_REMEDY,
                evidence=proven.evidence(),
            )
        self._proven[task, manifest_digest, digest] = proven


def _last_bundles(size: int) -> Iterator[int]:
    """The bundles of the last ``SEARCHED_MAX`` leaves, from the end."""
    first = max(0, size - SEARCHED_MAX) // TILE_WIDTH
    yield from reversed(range(first, -(-size // TILE_WIDTH)))
