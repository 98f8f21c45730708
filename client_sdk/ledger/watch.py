"""What a device asks of its ledger: whether a release, a model or a list of devices is in it.

Every answer is proven under a checkpoint that extends the last one which this device remembers.
What a checkpoint's size says is a peer's number: no work and no memory grows with it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.files import LedgerFiles
from client_sdk.ledger.log import Proven, WatchedLog, parsed
from client_sdk.ledger.models import SEARCHED_MAX, ReleasedModels
from client_sdk.network.transport import Transport
from client_sdk.state.journal import Journal
from client_sdk.threads import finish_in_thread
from dp.errors import LedgerError
from dp.ledger.contributors import (
    MARKED_BYTES,
    Members,
    contributors_path,
    listed,
    members_of,
)
from dp.ledger.receipts import in_sum, own_name
from dp.tlog.merkle import Frontier
from dp.tlog.notes import Checkpoint
from dp.tlog.tiles import TILE_WIDTH
from dp.tlog.witness import WitnessPolicy
from secagg.secret import Secret

_T = TypeVar("_T")
_P = ParamSpec("_P")


def _in_time(
    look: Callable[Concatenate[LedgerWatch, _P], Awaitable[_T]],
) -> Callable[Concatenate[LedgerWatch, _P], Coroutine[Any, Any, _T]]:
    @functools.wraps(look)
    async def timed(self: LedgerWatch, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        async with self.in_time():
            return await look(self, *args, **kwargs)

    return timed


class LedgerWatch:
    """One ledger as this device has seen it."""

    def __init__(
        self,
        transport: Transport,
        journal: Journal,
        verifier: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        witnesses: WitnessPolicy | None = None,
        identity: Secret | None = None,
        deadline_s: float = 600.0,
    ) -> None:
        """``verifier``: C2SP verifier key of the ledger, from the enrolment bundle.

        ``witnesses``: whose cosignatures every checkpoint must carry; None: nobody's.
        ``identity``: seed of this device's identity, by which it knows its own pseudonyms; None:
        only records of version 1 are of use.
        ``deadline_s``: of one look, over all files that it needs and every repeat.
        """
        self._identity = identity
        self.verifier = verifier
        self._files = LedgerFiles(transport, sleep, deadline_s)
        self._log = WatchedLog(self._files, journal, verifier, witnesses)
        self._models = ReleasedModels(self._files, self._log)

    def in_time(self) -> AbstractAsyncContextManager[None]:
        """As :meth:`client_sdk.ledger.files.LedgerFiles.in_time`."""
        return self._files.in_time()

    def remembered(self) -> Checkpoint | None:
        """The last checkpoint that was verified and found consistent."""
        return self._log.remembered()

    @_in_time
    async def advance(self) -> Checkpoint:
        """Fetch the current checkpoint, verify that it extends the remembered one, remember it.

        Raises:
            LedgerRefusal: ``ledger-rolled-back``, ``ledger-forked``, ``ledger-too-large``,
                ``ledger-incomplete``, ``ledger-deadline``, ``witnesses-missing``, or the reason for
                which a checkpoint does not verify.
        """
        return (await self._files.patiently(self._log.advance)).checkpoint

    @_in_time
    async def verify_release(
        self,
        leaf_index: int,
        *,
        task: str,
        release: int,
        ctx: bytes,
        manifest_digest: bytes,
        identity_key: bytes,
        masking_set_size: int = 0,
        survivors: int = 0,
        check: Callable[[Proven], None] | None = None,
    ) -> Mapping[str, object]:
        """The release's record, proven to be in the log that this device remembers.

        Args:
            masking_set_size, survivors: of the sets that this device confirmed; epsilon and the
                guaranteed noise follow from them. 0: not known (a session of an older version).
            check: a further look at the proven record, in a thread; raises LedgerRefusal.

        Raises:
            LedgerRefusal: as :meth:`advance`, or ``release-not-proven``, ``release-mismatch``,
                ``contributor-missing`` (this device is not among the contributors).
        """
        proven = await self._files.patiently(lambda: self._log.prove(leaf_index))
        expected: dict[str, object] = {
            "type": "release",
            "outcome": "released",
            "task": task,
            "release": release,
            "ctx": ctx.hex(),
            "manifest_digest": manifest_digest.hex(),
        }
        if survivors:
            expected |= {"masking_set_size": masking_set_size, "survivors": survivors}
        proven.demand(expected)
        if check is not None:
            await finish_in_thread(check, proven)
        await self._in_sum(proven, identity_key, demanded=True)
        return proven.record

    @_in_time
    async def holds(
        self, ctx: bytes, *, task: str, manifest_digest: bytes, identity_key: bytes, since: int
    ) -> tuple[bool | None, int]:
        """How cohort ``ctx`` ended for this device, which has lost its receipt.

        Args:
            since: leaves of the log before the cohort masked; the record cannot be older. At
                most ``SEARCHED_MAX`` leaves from there on are looked at, the rest another time.

        Returns:
            Whether the ledger provably lists this device in the cohort's release (False too if it
            was charged without one), or None while no record of the cohort was found; and the
            leaves before which no other look is needed.

        Raises:
            LedgerRefusal: as :meth:`verify_release`.
        """

        async def look() -> tuple[int | None, int]:
            leaves = (await self._log.advance()).checkpoint.size
            end = min(leaves, since + SEARCHED_MAX)
            return await self._find(ctx, since, end, leaves), end

        leaf_index, size = await self._files.patiently(look)
        if leaf_index is None:
            return None, size
        proven = await self._files.patiently(lambda: self._log.prove(leaf_index))
        claim = {"task": task, "ctx": ctx.hex(), "manifest_digest": manifest_digest.hex()}
        proven.demand({"type": "release", **claim})
        return await self._in_sum(proven, identity_key), size

    @_in_time
    async def verify_models(
        self,
        digests: frozenset[bytes],
        *,
        task: str,
        manifest_digest: bytes,
        leaf_index: int = -1,
    ) -> None:
        """Each of these models is proven to be one that the task was created with or released.

        Args:
            leaf_index: of the record that made the one model that is asked for, as the aggregator
                says; -1: the last ``SEARCHED_MAX`` leaves are searched for the records.

        Raises:
            LedgerRefusal: as :meth:`verify_release`, or ``model-not-in-ledger``.
        """
        await self._models.verify(
            digests, task=task, manifest_digest=manifest_digest, leaf_index=leaf_index
        )

    @_in_time
    async def released_clip(
        self, model_digest: bytes, *, task: str, manifest_digest: bytes
    ) -> float | None:
        """The clip that the release of a model names, proven; None where it names none.

        Raises:
            LedgerRefusal: as :meth:`verify_models`; ``release-mismatch`` for another record.
        """
        return await self._models.clip(model_digest, task=task, manifest_digest=manifest_digest)

    async def records(
        self, leaves_max: int, frontier: Frontier
    ) -> AsyncIterator[tuple[int, dict[str, object]]]:
        """(size in bytes, record) of every leaf after those of ``frontier``, in order.

        That with those before they are the whole log is proven when the iteration ends, not before;
        ``frontier`` is that of the whole log then.

        Raises:
            LedgerRefusal: as :meth:`advance`, ``ledger-too-long``, or ``ledger-forked`` if they are
                not what the checkpoint signs.
        """
        checkpoint = await self.advance()
        if checkpoint.size - frontier.size > leaves_max:
            raise LedgerRefusal(
                "ledger-too-long",
                "The ledger has more records than this device reads at once.",
                expected=f"at most {leaves_max}",
                found=checkpoint.size - frontier.size,
                remedy="To read them all: secagg account recover BUNDLE --leaves-max N.",
            )
        async for entry in self._log.entries(checkpoint, frontier):
            yield len(entry), parsed(entry)

    @_in_time
    async def record(self, leaf_index: int) -> Mapping[str, object]:
        """The record at a leaf, proven.

        Raises:
            LedgerRefusal: as :meth:`verify_release`.
        """
        return (await self._files.patiently(lambda: self._log.prove(leaf_index))).record

    async def _find(self, ctx: bytes, since: int, end: int, size: int) -> int | None:
        """The first leaf of [since, end) that speaks of ``ctx``; it remains to be proven."""
        for number in range(since // TILE_WIDTH, -(-end // TILE_WIDTH)):
            for index, record in await self._log.bundle(number, size):
                if since <= index < end and record.get("ctx") == ctx.hex():
                    return index
        return None

    async def _in_sum(self, proven: Proven, identity_key: bytes, *, demanded: bool = False) -> bool:
        """Whether a record of a cohort in which this device masked lists it in the released sum.

        Raises:
            LedgerRefusal: ``contributor-missing``: it is not listed once, or not in the sum
                although that is ``demanded``.
        """
        record = proven.record
        own, members = self._own_name(record, identity_key), await self._members(record)
        with proven.accused():
            return in_sum(record, members, own, demanded=demanded)

    async def lists(self, record: Mapping[str, object], identity_key: bytes) -> tuple[bool, int]:
        """Whether a release record lists this device, and the bytes of its list in a file.

        Raises:
            LedgerRefusal: ``contributor-missing``: its list is damaged or gone.
        """
        own, members = self._own_name(record, identity_key), await self._members(record)
        in_file = record.get("contributors") == [] and record.get("not_in_sum", []) == []
        return own in members.all, len(members.all) * MARKED_BYTES if in_file else 0

    def _own_name(self, record: Mapping[str, object], identity_key: bytes) -> bytes:
        """The name by which a release record lists this device, if it does.

        Raises:
            LedgerRefusal: ``release-mismatch``: its context does not parse.
        """
        try:
            return own_name(record, identity_key, self._identity)
        except LedgerError as error:
            raise LedgerRefusal(error.reason, error.message) from error

    async def _members(self, record: Mapping[str, object]) -> Members:
        """From the record, or from the file that it names and that must match."""
        try:
            apart = listed(record)
            path = "" if apart is None else contributors_path(apart)
            content = await self._files.get(path) if path else None
            return members_of(record, {path: content}.get)
        except LedgerError as error:
            raise LedgerRefusal(
                "contributor-missing",
                f"The list of devices of a release cannot be read: {error}",
                found=record.get("ctx"),
                remedy="Ask the operator to serve the ledger's folder 'contributors' again; "
                "secagg audit verify names every list that is missing.",
            ) from error
