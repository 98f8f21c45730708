"""The device's watch over the ledger: one log, append-only, with its own releases in it.

Every checkpoint is verified by the key that the device was enrolled with and must extend the last
one that it remembers (RFC 6962 consistency, computed from the log's tiles); a receipt counts only
when the release's record is under the checkpoint (inclusion). A log that shrank or forked is
refused, for good: the remembered checkpoint stays.

What a checkpoint's size says is a peer's number: no work and no memory grows with it. A log may
have, and grow by, so many leaves and no more, and a search for a record looks at the last of them.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from client_sdk.errors import LedgerRefusal, TransportError
from client_sdk.network.http import is_transient
from client_sdk.network.transport import Transport
from client_sdk.state.journal import Journal
from client_sdk.threads import finish_in_thread
from dp.errors import LedgerError
from dp.ledger.contributors import (
    MARKED_BYTES,
    Members,
    by_identity,
    contributors_path,
    listed,
    members_of,
)
from dp.ledger.parsing import canonical_object, clip_of
from dp.ledger.records import identity_digest
from dp.tlog import merkle, tiles
from dp.tlog.notes import Checkpoint, open_checkpoint, parse_verifier
from dp.tlog.witness import WitnessPolicy
from secagg.context import pseudonym
from secagg.secret import Secret

_T = TypeVar("_T")
_P = ParamSpec("_P")
_TRIES = 6  # a replica may serve what it rendered a moment ago
_WAIT_S = 0.25
_ASK_ABOUT_BACKUP = (
    "Ask the operator, who may have restored an older backup. What this device remembers stays: it "
    "takes part again once the ledger extends that."
)

LEAVES_MAX = 1 << 32
"""Leaves of a log, in all: a century of a release a second."""
GROWTH_MAX = 1 << 24
"""Leaves by which a log may have grown since this device's last visit: half a year of the same."""
SEARCHED_MAX = 1 << 14
"""Leaves that one search looks through (64 bundles); an offer that names a leaf needs none."""


@dataclass(frozen=True)
class Proven:
    """A record, and what proves that it is leaf ``leaf_index`` of the log.

    ``entry``: its bytes. ``proof``: RFC 6962 audit path. ``checkpoint``: the signed note.
    """

    record: dict[str, object]
    leaf_index: int
    entry: bytes
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def evidence(self) -> dict[str, object]:
        return {
            "record": self.record,
            "leaf_index": self.leaf_index,
            "entry": self.entry,
            "proof": list(self.proof),
            "checkpoint": self.checkpoint,
        }


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
        self._witnesses = witnesses
        self._transport = transport
        self._journal = journal
        self.verifier = verifier
        self._verifier = parse_verifier(verifier)
        self._models: dict[tuple[str, bytes, bytes], Proven] = {}
        self._name = "checkpoint-" + hashlib.sha256(verifier.encode()).hexdigest()[:16]
        self._sleep = sleep
        self._deadline_s = deadline_s

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What is read of the ledger in here comes before the deadline.

        Raises:
            LedgerRefusal: ``ledger-deadline``.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                yield
        except TimeoutError as error:
            raise LedgerRefusal(
                "ledger-deadline",
                "The ledger's files did not come in time.",
                expected=f"all that one look needs in {self._deadline_s:g} s",
                remedy="Try again on a faster network, or raise ledger_s of TransportSettings; if "
                "it persists, ask the operator.",
            ) from error

    def remembered(self) -> Checkpoint | None:
        """The last checkpoint that was verified and found consistent."""
        note = self._remembered_note()
        return None if note is None else open_checkpoint(note, self._verifier)

    def _remembered_note(self) -> bytes | None:
        return self._journal.load_blob(self._name)

    @_in_time
    async def advance(self) -> Checkpoint:
        """Fetch the current checkpoint, verify that it extends the remembered one, remember it.

        Raises:
            LedgerRefusal: ``ledger-rolled-back``, ``ledger-forked``, ``ledger-too-large``,
                ``ledger-incomplete``, ``ledger-deadline``, ``witnesses-missing``, or the reason for
                which a checkpoint does not verify.
        """
        return await self._patiently(lambda: self._advance(0))

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
        proven = await self._patiently(lambda: self._prove(leaf_index))
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
        demand(proven, expected)
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
            checkpoint = await self._advance(0)
            end = min(checkpoint.size, since + SEARCHED_MAX)
            return await self._find(ctx, since, end, checkpoint.size), end

        leaf_index, size = await self._patiently(look)
        if leaf_index is None:
            return None, size
        proven = await self._patiently(lambda: self._prove(leaf_index))
        claim = {"task": task, "ctx": ctx.hex(), "manifest_digest": manifest_digest.hex()}
        demand(proven, {"type": "release", **claim})
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
        if leaf_index >= 0:
            (digest,) = digests
            if (task, manifest_digest, digest) not in self._models:
                proven = await self._patiently(lambda: self._prove(leaf_index))
                self._remember_model(proven, digest, task, manifest_digest)
        await self._records_of(digests, task, manifest_digest)

    @_in_time
    async def released_clip(
        self, model_digest: bytes, *, task: str, manifest_digest: bytes
    ) -> float | None:
        """The clip that the release of a model names, proven; None where it names none.

        Raises:
            LedgerRefusal: as :meth:`verify_models`; ``release-mismatch`` for another record.
        """
        (record,) = await self._records_of(frozenset({model_digest}), task, manifest_digest)
        try:
            return clip_of(record)
        except LedgerError as error:
            raise LedgerRefusal("release-mismatch", str(error)) from error

    async def _records_of(
        self, digests: frozenset[bytes], task: str, manifest_digest: bytes
    ) -> list[dict[str, object]]:
        """For each model the record that made it, proven to be in the log.

        What was proven once stays so: the log is append-only, as far as this device has seen it.
        """
        known = {digest for digest in digests if (task, manifest_digest, digest) in self._models}
        wanted = {digest.hex() for digest in digests - known}
        claim = {"task": task, "manifest_digest": manifest_digest.hex()}

        async def look() -> dict[str, int]:
            checkpoint = await self._advance(0)
            found: dict[str, int] = {}
            for bundle in _last_bundles(checkpoint.size):
                for index, record in await self._bundle(bundle):
                    if claim.items() <= record.items() and _model_of(record) in wanted:
                        found[str(_model_of(record))] = index
                if len(found) == len(wanted):
                    break
            if missing := wanted - found.keys():
                raise LedgerError(
                    "model-not-in-ledger",
                    "A model was offered that this task never released.",
                    expected=f"a model of the last {SEARCHED_MAX} of {checkpoint.size} records",
                    found=sorted(missing)[:4],
                    remedy="Ask the operator; a model that no ledger names may be crafted.",
                )
            return found

        if wanted:
            for model, index in (await self._patiently(look)).items():
                proven = await self._patiently(functools.partial(self._prove, index))
                self._remember_model(proven, bytes.fromhex(model), task, manifest_digest)
        return [self._models[task, manifest_digest, digest].record for digest in digests]

    def _remember_model(
        self, proven: Proven, digest: bytes, task: str, manifest_digest: bytes
    ) -> None:
        claim = {"task": task, "manifest_digest": manifest_digest.hex()}
        found = {key: proven.record.get(key) for key in claim}
        if found != claim or _model_of(proven.record) != digest.hex():
            raise LedgerRefusal(
                "model-not-in-ledger",
                "The ledger's record is not about the model that it was shown for.",
                expected={**claim, "model": digest.hex()},
                found={**found, "model": _model_of(proven.record)},
                remedy="Ask the operator; a model that no ledger names may be crafted.",
                evidence=proven.evidence(),
            )
        self._models[task, manifest_digest, digest] = proven

    async def records(self, leaves_max: int) -> AsyncIterator[tuple[int, dict[str, object]]]:
        """(size in bytes, record) of every leaf, in order.

        That they are the whole log is proven when the iteration ends, not before.

        Raises:
            LedgerRefusal: as :meth:`advance`, ``ledger-too-long``, or ``ledger-forked`` if they are
                not what the checkpoint signs.
        """
        checkpoint = await self.advance()
        if checkpoint.size > leaves_max:
            raise LedgerRefusal(
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
            except LedgerError as error:
                raise LedgerRefusal("ledger-incomplete", str(error)) from error
            for entry in entries:
                tree.append(merkle.leaf_hash(entry))
                yield len(entry), _parse(entry)
        if merkle.root(tree.subtree, tree.size) != checkpoint.root:
            raise LedgerRefusal(
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

    async def _find(self, ctx: bytes, since: int, end: int, size: int) -> int | None:
        """The first leaf of [since, end) that speaks of ``ctx``; it remains to be proven."""
        for number in range(since // tiles.TILE_WIDTH, -(-end // tiles.TILE_WIDTH)):
            for index, record in await self._bundle(tiles.bundle_at(number, size)):
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
        marked = members.contributors.count(own)
        lists_all = not by_identity(record)
        if members.all.count(own) > 1 or (lists_all and own not in members.all):
            message = "The ledger does not list this device in the cohort's masking set, once."
        elif demanded and not marked:
            message = "The ledger does not list this device among the release's contributors."
        else:
            return record.get("outcome") == "released" and marked == 1
        raise LedgerRefusal(
            "contributor-missing",
            message,
            expected=own.hex(),
            evidence=proven.evidence(),
            lasting=True,
        )

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
        if by_identity(record) or self._identity is None:
            return identity_digest(identity_key)
        try:
            return pseudonym(self._identity, bytes.fromhex(str(record.get("ctx"))))
        except ValueError as error:
            raise LedgerRefusal("release-mismatch", "The record's context is not hex.") from error

    async def _members(self, record: Mapping[str, object]) -> Members:
        """From the record, or from the file that it names and that must match."""
        try:
            apart = listed(record)
            path = "" if apart is None else contributors_path(apart)
            content = await self._get(path) if path else None
            return members_of(record, {path: content}.get)
        except LedgerError as error:
            raise LedgerRefusal(
                "contributor-missing",
                f"The list of devices of a release cannot be read: {error}",
                found=record.get("ctx"),
                remedy="Ask the operator to serve the ledger's folder 'contributors' again; "
                "secagg audit verify names every list that is missing.",
            ) from error

    async def _prove(self, leaf_index: int) -> Proven:
        checkpoint = await self._advance(leaf_index + 1)
        note = self._remembered_note()
        assert note is not None  # noqa: S101  _advance has remembered it
        files = await self._fetch(tiles.proof_paths(checkpoint.size, index=leaf_index))
        entry = tiles.read_entry(files.get, leaf_index, checkpoint.size)
        proof = tiles.inclusion_proof(files.get, leaf_index, checkpoint.size)
        try:
            merkle.verify_inclusion(
                merkle.leaf_hash(entry), leaf_index, checkpoint.size, proof, checkpoint.root
            )
        except LedgerError as error:
            raise LedgerRefusal("release-not-proven", str(error)) from error
        unparsed = Proven({}, leaf_index, entry, tuple(proof), note)
        try:
            return replace(unparsed, record=_parse(entry))
        except LedgerRefusal as error:
            error.evidence, error.lasting = unparsed.evidence(), True
            raise

    async def _advance(self, size_min: int) -> Checkpoint:
        note = await self._get("checkpoint")
        if note is None:
            raise LedgerError("checkpoint-missing", "The ledger serves no checkpoint.")
        new, old = open_checkpoint(note, self._verifier), self.remembered()
        if self._witnesses is not None:
            self._witnesses.check(note)
        if old is not None and new.size < old.size:
            raise _RolledBack(old, new, self._shown(note))
        _check_growth(0 if old is None else old.size, new.size, old is None, self._shown(note))
        if old is not None and new != old:
            files = await self._fetch(tiles.proof_paths(new.size, old_size=old.size))
            proof = tiles.consistency_proof(files.get, old.size, new.size)
            try:
                merkle.verify_consistency(old.size, new.size, old.root, new.root, proof)
            except LedgerError as error:
                raise LedgerRefusal(
                    "ledger-forked",
                    "The ledger does not extend what this device has seen of it.",
                    expected=f"{old.size} leaves under {old.root.hex()}",
                    found=f"{new.size} leaves under {new.root.hex()}",
                    remedy=_ASK_ABOUT_BACKUP,
                    evidence=self._shown(note) | {"proof": proof},
                    lasting=True,
                ) from error
        if new != old:
            self._journal.save_blob(self._name, note)
        if new.size < size_min:
            raise LedgerError(
                "release-not-proven",
                "The ledger does not reach the leaf that it should hold.",
                expected=f"at least {size_min} leaves",
                found=new.size,
            )
        return new

    def _shown(self, note: bytes) -> dict[str, object]:
        """The checkpoint that was served, beside the one that is remembered."""
        return {"checkpoint": note, "remembered": self._remembered_note()}

    async def _get(self, path: str) -> bytes | None:
        """A file of the ledger; None if it is not there.

        Raises:
            LedgerRefusal: ``ledger-unreadable``: what is served there is refused, or too large.
            TransportError: the aggregator is out of reach.
        """
        try:
            return await self._transport.ledger(path)
        except TransportError as error:
            if error.own_status is None or is_transient(error):
                raise
            raise unreadable(error) from error

    async def _fetch(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Files of the log; the full form of a tile where its partial form is gone."""
        files = {}
        for path in paths:
            content = await self._get(path)
            if content is None and ".p/" in path:
                path = path.rpartition(".p/")[0]
                content = await self._get(path)
            if content is not None:
                files[path] = content
        return files

    async def _patiently(self, once: Callable[[], Awaitable[_T]]) -> _T:
        """Retry what a file just rendered would mend; what stays wrong is the ledger's fault."""
        for attempt in range(_TRIES):
            try:
                return await once()
            except LedgerError as error:
                if attempt == _TRIES - 1:
                    raise _final(error) from error
            await self._sleep(_WAIT_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _model_of(record: Mapping[str, object]) -> object:
    """The digest of the model that a record vouches for, hex; None if it is about none."""
    if record.get("type") == "task":
        return record.get("model_digest")
    if record.get("type") == "release" and record.get("outcome") == "released":
        return record.get("new_model_digest")
    return None


class _RolledBack(LedgerError):
    """A checkpoint that is shorter than the remembered one; a stale replica may show it once."""

    def __init__(self, old: Checkpoint, new: Checkpoint, evidence: dict[str, object]) -> None:
        self.evidence = evidence
        super().__init__(
            "ledger-rolled-back",
            "The ledger is shorter than this device has seen it.",
            expected=f"at least {old.size} leaves",
            found=new.size,
            remedy=_ASK_ABOUT_BACKUP,
        )


def _final(error: LedgerError) -> LedgerRefusal:
    """What a log error is when no retry has mended it."""
    return LedgerRefusal(
        "ledger-incomplete" if error.reason == "tile-missing" else error.reason,
        error.message,
        expected=error.expected,
        found=error.found,
        remedy=error.remedy,
        evidence=error.evidence if isinstance(error, _RolledBack) else None,
        lasting=isinstance(error, _RolledBack),
    )


def unreadable(error: TransportError) -> LedgerRefusal:
    """The ledger is in reach, and a file of it cannot be had."""
    return LedgerRefusal(
        "ledger-unreadable",
        f"A file of the ledger cannot be had: {error}",
        found=error.status,
        remedy="Ask the operator; a proxy may refuse the paths under /ledger.",
    )


def _check_growth(old: int, new: int, first: bool, shown: dict[str, object]) -> None:
    """Refuse sizes that no honest log has.

    Raises:
        LedgerRefusal: ``ledger-too-large``.
    """
    growth_max = LEAVES_MAX if first else GROWTH_MAX
    if new > LEAVES_MAX or new - old > growth_max:
        raise LedgerRefusal(
            "ledger-too-large",
            "The ledger has more leaves than a log can have, or grew by more since the last visit.",
            expected=f"at most {min(LEAVES_MAX, old + growth_max)} leaves, {old} were seen before",
            found=new,
            remedy="Ask the operator: its key signed this size.",
            evidence=shown,
            lasting=True,
        )


def _last_bundles(size: int) -> Iterator[tiles.Tile]:
    """The bundles of the last ``SEARCHED_MAX`` leaves, from the end."""
    first = max(0, size - SEARCHED_MAX) // tiles.TILE_WIDTH
    for number in reversed(range(first, -(-size // tiles.TILE_WIDTH))):
        yield tiles.bundle_at(number, size)


def demand(proven: Proven, expected: Mapping[str, object]) -> None:
    """Each of these fields of a proven record is what this device knows.

    Raises:
        LedgerRefusal: ``release-mismatch``.
    """
    found = {key: proven.record.get(key) for key in expected}
    wrong = [key for key in expected if not _same(found[key], expected[key])]
    if wrong:
        raise LedgerRefusal(
            "release-mismatch",
            "The ledger's record is not that of this device's release.",
            expected={key: expected[key] for key in wrong},
            found={key: found[key] for key in wrong},
            remedy="Ask the operator; the evidence shows what its ledger says.",
            evidence=proven.evidence(),
            lasting=True,
        )


def _same(found: object, expected: object) -> bool:
    """As JSON: in Python True equals 1."""
    return msgspec.json.encode(found) == msgspec.json.encode(expected)


def _parse(entry: bytes) -> dict[str, object]:
    """A record in its only reading; it nests no deeper than what is done with it can follow."""
    try:
        return canonical_object(entry)
    except LedgerError as error:
        raise LedgerRefusal("release-mismatch", f"The ledger's record: {error}") from error
