"""Which delta answers a device that names the model it holds, each made once.

The shorter of two: from the held model, and from nothing. A device that missed versions gets one
delta all the same: steps lie on a common grid, so their sum is one integer a coordinate, with half
a bit more for each doubling of the versions, where a chain would send every step.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from aggregator.core import Core
from aggregator.store import deltas, reads
from aggregator.store.blobs import BlobDamaged, BlobMissing


@dataclass(frozen=True)
class Delta:
    """A blob of ``size_bytes``; ``digest``: its SHA-256, hex."""

    name: str
    digest: str
    size_bytes: int


class Deltas:
    """Of one replica."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._made: dict[tuple[str, str], asyncio.Future[Delta | None]] = {}
        self._pruned_for: frozenset[str] = frozenset()

    async def shortest(self, model: str, held: str) -> Delta | None:
        """The delta of a present model for who holds ``held``, hex; None: the whole is as good."""
        database = self._core.database
        present = await reads.present_models(database)
        if model not in present:
            return None
        await self._prune(frozenset(present))
        bases = [deltas.NOTHING]
        if held != deltas.NOTHING and await reads.is_older(
            database, held, model, deltas.VERSIONS_BACK
        ):
            bases.append(held)
        found = [await self._delta(model, base) for base in bases]
        return min(
            (delta for delta in found if delta is not None),
            key=lambda delta: delta.size_bytes,
            default=None,
        )

    def forget(self, delta: Delta) -> None:
        """Its file is gone: whoever asks again has it made anew."""
        self._made = {
            key: made
            for key, made in self._made.items()
            if not (made.done() and made.result() == delta)
        }

    async def _prune(self, present: frozenset[str]) -> None:
        if present == self._pruned_for:
            return
        self._pruned_for = present
        self._made = {key: made for key, made in self._made.items() if key[0] in present}
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._core.pool, deltas.prune, self._core.blobs, present)

    async def _delta(self, model: str, base: str) -> Delta | None:
        made = self._made.get((model, base))
        if made is None or (made.done() and made.exception() is not None):
            loop = asyncio.get_running_loop()
            made = loop.run_in_executor(self._core.pool, self._make, model, base)
            self._made[model, base] = made
        return await asyncio.shield(made)

    def _make(self, model: str, base: str) -> Delta | None:
        """Runs in a thread."""
        blobs = self._core.blobs
        try:
            if not deltas.make(blobs, model, base):
                return None
            name = deltas.name_of(model, base)
            content = blobs.get(name)
        except (BlobMissing, BlobDamaged):
            return None
        return Delta(name, hashlib.sha256(content).hexdigest(), len(content))
