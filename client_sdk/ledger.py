"""The device's watch over the ledger: one log, append-only, with its own releases in it.

Every checkpoint is verified by the key that the device was enrolled with and must extend the last
one that it remembers (RFC 6962 consistency, computed from the log's tiles); a receipt counts only
when the release's record is under the checkpoint (inclusion). A log that shrank or forked is
refused, for good: the remembered checkpoint stays.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from client_sdk.errors import LedgerError
from client_sdk.journal import Journal
from client_sdk.transport import Transport
from dp import merkle, tiles
from dp.contributors import (
    MARKED_BYTES,
    Members,
    by_identity,
    contributors_path,
    listed,
    members_of,
)
from dp.errors import LedgerError as LogError
from dp.notes import Checkpoint, open_checkpoint, parse_verifier
from dp.records import clip_of, identity_digest
from dp.witness import WitnessPolicy
from secagg.context import pseudonym
from secagg.secret import Secret

_T = TypeVar("_T")
_TRIES = 6  # a replica may serve what it rendered a moment ago
_WAIT_S = 0.25


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
    ) -> None:
        """``verifier``: C2SP verifier key of the ledger, from the enrolment bundle.

        ``witnesses``: whose cosignatures every checkpoint must carry; None: nobody's.
        ``identity``: seed of this device's identity, by which it knows its own pseudonyms; None:
        only records of version 1 are of use.
        """
        self._identity = identity
        self._witnesses = witnesses
        self._transport = transport
        self._journal = journal
        self._verifier = parse_verifier(verifier)
        self._name = "checkpoint-" + hashlib.sha256(verifier.encode()).hexdigest()[:16]
        self._sleep = sleep

    def remembered(self) -> Checkpoint | None:
        """The last checkpoint that was verified and found consistent."""
        note = self._journal.load_blob(self._name)
        return None if note is None else open_checkpoint(note, self._verifier)

    async def advance(self) -> Checkpoint:
        """Fetch the current checkpoint, verify that it extends the remembered one, remember it.

        Raises:
            LedgerError: ``ledger-rolled-back``, ``ledger-forked``, ``ledger-incomplete``,
                ``witnesses-missing``, or the reason for which a checkpoint does not verify.
        """
        return await self._patiently(lambda: self._advance(0))

    async def verify_release(
        self,
        leaf_index: int,
        *,
        task: str,
        release: int,
        ctx: bytes,
        manifest_digest: bytes,
        identity_key: bytes,
        masking_set: int = 0,
        survivors: int = 0,
    ) -> Mapping[str, object]:
        """The release's record, proven to be in the log that this device remembers.

        Args:
            masking_set, survivors: sizes of the sets that this device confirmed; epsilon and the
                guaranteed noise follow from them. 0: not known (a session of an older version).

        Raises:
            LedgerError: as :meth:`advance`, or ``release-not-proven``, ``release-mismatch``,
                ``contributor-missing`` (this device is not among the contributors).
        """
        record = await self._patiently(lambda: self._prove(leaf_index))
        expected = {
            "type": "release",
            "outcome": "released",
            "task": task,
            "release": release,
            "ctx": ctx.hex(),
            "manifest_digest": manifest_digest.hex(),
        }
        if survivors:
            expected |= {"masking_set_size": masking_set, "survivors": survivors}
        _demand(record, expected)
        await self._in_sum(record, identity_key, demanded=True)
        return record

    async def holds(
        self, ctx: bytes, *, task: str, manifest_digest: bytes, identity_key: bytes, since: int
    ) -> tuple[bool | None, int]:
        """How cohort ``ctx`` ended for this device, which has lost its receipt.

        Args:
            since: leaves of the log before the cohort masked; the record cannot be older.

        Returns:
            Whether the ledger provably lists this device in the cohort's release (False too if it
            was charged without one), or None while the ledger has no record of the cohort; and
            the leaves that were looked through.

        Raises:
            LedgerError: as :meth:`verify_release`.
        """

        async def look() -> tuple[int | None, int]:
            checkpoint = await self._advance(0)
            return await self._find(ctx, since, checkpoint.size), checkpoint.size

        leaf_index, size = await self._patiently(look)
        if leaf_index is None:
            return None, size
        record = await self._patiently(lambda: self._prove(leaf_index))
        claim = {"task": task, "ctx": ctx.hex(), "manifest_digest": manifest_digest.hex()}
        _demand(record, {"type": "release", **claim})
        return await self._in_sum(record, identity_key), size

    async def verify_models(
        self, digests: frozenset[bytes], *, task: str, manifest_digest: bytes
    ) -> None:
        """Each of these models is proven to be one that the task was created with or released.

        Raises:
            LedgerError: as :meth:`verify_release`, or ``model-not-in-ledger``.
        """
        await self._records_of(digests, task, manifest_digest)

    async def released_clip(
        self, model_digest: bytes, *, task: str, manifest_digest: bytes
    ) -> float | None:
        """The clip that the release of a model names, proven; None where it names none.

        Raises:
            LedgerError: as :meth:`verify_models`; ``release-mismatch`` for a record that is none.
        """
        (record,) = await self._records_of(frozenset({model_digest}), task, manifest_digest)
        try:
            return clip_of(record)
        except LogError as error:
            raise LedgerError("release-mismatch", str(error)) from error

    async def _records_of(
        self, digests: frozenset[bytes], task: str, manifest_digest: bytes
    ) -> list[dict[str, object]]:
        """For each model the record that made it, proven to be in the log."""
        wanted = {digest.hex() for digest in digests}
        claim = {"task": task, "manifest_digest": manifest_digest.hex()}

        async def look() -> dict[str, int]:
            checkpoint = await self._advance(0)
            found: dict[str, int] = {}
            for bundle in reversed(list(tiles.bundles_of(checkpoint.size))):
                for index, record in await self._bundle(bundle):
                    if claim.items() <= record.items() and _model_of(record) in wanted:
                        found[str(_model_of(record))] = index
                if len(found) == len(wanted):
                    break
            if missing := wanted - found.keys():
                raise LogError(
                    "model-not-in-ledger",
                    "The cohort admits a model that this task never released.",
                    expected="models of the ledger",
                    found=sorted(missing)[:4],
                )
            return found

        proven = []
        for model, index in (await self._patiently(look)).items():
            record = await self._patiently(lambda index=index: self._prove(index))
            _demand(record, claim)
            if _model_of(record) != model:
                raise LedgerError(
                    "model-not-in-ledger",
                    "The ledger's record is not about the model that it was shown for.",
                    expected=model,
                    found=_model_of(record),
                )
            proven.append(record)
        return proven

    async def records(self, leaves_max: int) -> AsyncIterator[tuple[int, dict[str, object]]]:
        """(size in bytes, record) of every leaf, in order.

        That they are the whole log is proven when the iteration ends, not before.

        Raises:
            LedgerError: as :meth:`advance`, ``ledger-too-long``, or ``ledger-forked`` if they are
                not what the checkpoint signs.
        """
        checkpoint = await self.advance()
        if checkpoint.size > leaves_max:
            raise LedgerError(
                "ledger-too-long",
                "The ledger has more records than this device reads at once.",
                expected=f"at most {leaves_max}",
                found=checkpoint.size,
                remedy="To read them all: secagg account recover BUNDLE --leaves-max N.",
            )
        tree = merkle.Tree()
        for bundle in tiles.bundles_of(checkpoint.size):
            files = await self._fetch([bundle.path])
            try:
                entries = tiles.parse_bundle(tiles.fetch(files.get, bundle), bundle.width)
            except LogError as error:
                raise LedgerError("ledger-incomplete", str(error)) from error
            for entry in entries:
                tree.append(merkle.leaf_hash(entry))
                yield len(entry), _parse(entry)
        if merkle.root(tree.subtree, tree.size) != checkpoint.root:
            raise LedgerError(
                "ledger-forked",
                "The ledger's records are not those that its checkpoint signs.",
                expected=checkpoint.root.hex(),
                remedy="Try again; if it persists, ask the operator.",
            )

    async def _bundle(self, bundle: tiles.Tile) -> list[tuple[int, dict[str, object]]]:
        """Leaf indices and records of one bundle; unverified."""
        files = await self._fetch([bundle.path])
        entries = tiles.parse_bundle(tiles.fetch(files.get, bundle), bundle.width)
        first = bundle.number * tiles.TILE_WIDTH
        return [(first + offset, _parse(entry)) for offset, entry in enumerate(entries)]

    async def _find(self, ctx: bytes, since: int, size: int) -> int | None:
        """The first leaf that speaks of ``ctx``; unverified, so it remains to be proven."""
        for bundle in tiles.bundles_of(size):
            if bundle.number * tiles.TILE_WIDTH + bundle.width <= since:
                continue
            for index, record in await self._bundle(bundle):
                if index >= since and record.get("ctx") == ctx.hex():
                    return index
        return None

    async def _in_sum(
        self, record: Mapping[str, object], identity_key: bytes, *, demanded: bool = False
    ) -> bool:
        """Whether a record of a cohort in which this device masked lists it in the released sum.

        Raises:
            LedgerError: ``contributor-missing``: it is not listed once, or not in the sum although
                that is ``demanded``.
        """
        own, members = self._own_name(record, identity_key), await self._members(record)
        marked = members.contributors.count(own)
        lists_all = not by_identity(record)
        if members.all.count(own) > 1 or (lists_all and own not in members.all):
            message = "The ledger does not list this device in the cohort's masking set, once."
        elif demanded and not marked:
            message = "The ledger does not list this device among the release's contributors."
        else:
            return record.get("outcome") == "released" and marked == 1
        raise LedgerError("contributor-missing", message, expected=own.hex())

    async def lists(self, record: Mapping[str, object], identity_key: bytes) -> tuple[bool, int]:
        """Whether a release record lists this device, and the bytes of its list in a file.

        Raises:
            LedgerError: ``contributor-missing``: its list is damaged or gone.
        """
        own, members = self._own_name(record, identity_key), await self._members(record)
        in_file = record.get("contributors") == [] and record.get("not_in_sum", []) == []
        return own in members.all, len(members.all) * MARKED_BYTES if in_file else 0

    def _own_name(self, record: Mapping[str, object], identity_key: bytes) -> bytes:
        """The name by which a release record lists this device, if it does.

        Raises:
            LedgerError: ``release-mismatch``: its context does not parse.
        """
        if by_identity(record) or self._identity is None:
            return identity_digest(identity_key)
        try:
            return pseudonym(self._identity, bytes.fromhex(str(record.get("ctx"))))
        except ValueError as error:
            raise LedgerError("release-mismatch", "The record's context is no hex.") from error

    async def _members(self, record: Mapping[str, object]) -> Members:
        """From the record, or from the file that it names and that must match."""
        try:
            apart = listed(record)
            path = "" if apart is None else contributors_path(apart)
            content = await self._transport.ledger(path) if path else None
            return members_of(record, {path: content}.get)
        except LogError as error:
            raise LedgerError("contributor-missing", str(error)) from error

    async def _prove(self, leaf_index: int) -> dict[str, object]:
        checkpoint = await self._advance(leaf_index + 1)
        files = await self._fetch(tiles.proof_paths(checkpoint.size, index=leaf_index))
        entry = tiles.read_entry(files.get, leaf_index, checkpoint.size)
        proof = tiles.inclusion_proof(files.get, leaf_index, checkpoint.size)
        try:
            merkle.verify_inclusion(
                merkle.leaf_hash(entry), leaf_index, checkpoint.size, proof, checkpoint.root
            )
        except LogError as error:
            raise LedgerError("release-not-proven", str(error)) from error
        return _parse(entry)

    async def _advance(self, size_min: int) -> Checkpoint:
        note = await self._transport.ledger("checkpoint")
        if note is None:
            raise LogError("checkpoint-missing", "The ledger serves no checkpoint.")
        new, old = open_checkpoint(note, self._verifier), self.remembered()
        if self._witnesses is not None:
            self._witnesses.check(note)
        if old is not None and new.size < old.size:
            raise LogError(
                "ledger-rolled-back",
                "The ledger is shorter than this device has seen it.",
                expected=f"at least {old.size} leaves",
                found=new.size,
            )
        if new.size < size_min:
            raise LogError(
                "release-not-proven",
                "The ledger does not reach the release's leaf.",
                expected=f"at least {size_min} leaves",
                found=new.size,
            )
        if old is not None:
            if new == old:
                return new
            files = await self._fetch(tiles.proof_paths(new.size, old_size=old.size))
            proof = tiles.consistency_proof(files.get, old.size, new.size)
            try:
                merkle.verify_consistency(old.size, new.size, old.root, new.root, proof)
            except LogError as error:
                raise LedgerError(
                    "ledger-forked",
                    "The ledger does not extend what this device has seen of it.",
                    expected=f"{old.size} leaves under {old.root.hex()}",
                    found=f"{new.size} leaves under {new.root.hex()}",
                    remedy="Keep the state folder as evidence and ask the operator.",
                ) from error
        self._journal.save_blob(self._name, note)
        return new

    async def _fetch(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Files of the log; the full form of a tile where its partial form is gone."""
        files = {}
        for path in paths:
            content = await self._transport.ledger(path)
            if content is None and ".p/" in path:
                path = path.rpartition(".p/")[0]
                content = await self._transport.ledger(path)
            if content is not None:
                files[path] = content
        return files

    async def _patiently(self, once: Callable[[], Awaitable[_T]]) -> _T:
        """Retry what a file just rendered would mend; what stays wrong is the ledger's fault."""
        for attempt in range(_TRIES):
            try:
                return await once()
            except LogError as error:
                if attempt == _TRIES - 1:
                    reason = "ledger-incomplete" if error.reason == "tile-missing" else error.reason
                    raise LedgerError(reason, str(error)) from error
            await self._sleep(_WAIT_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _model_of(record: Mapping[str, object]) -> object:
    """The digest of the model that a record vouches for, hex; None if it is about none."""
    if record.get("type") == "task":
        return record.get("model_digest")
    if record.get("type") == "release" and record.get("outcome") == "released":
        return record.get("new_model_digest")
    return None


def _demand(record: Mapping[str, object], expected: Mapping[str, object]) -> None:
    found = {key: record.get(key) for key in expected}
    if found != expected:
        raise LedgerError(
            "release-mismatch",
            "The ledger's record is not that of this device's release.",
            expected=expected,
            found=found,
        )


def _parse(entry: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(entry, type=dict[str, object])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LedgerError("release-mismatch", "The ledger's record does not parse.") from error
