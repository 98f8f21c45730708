"""The ledger's log as this device has verified it, and the last checkpoint that it remembers.

What to fetch and when to try again is decided here; what makes it true is
:mod:`dp.ledger.trusted_log`. A log that shrank or forked is refused, for good: the remembered
checkpoint stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.files import LedgerFiles, Unmended
from client_sdk.state.journal import Journal
from dp.errors import LeafUnproven, LedgerError, LogForked, LogShrank, LogTooLarge, RootMismatch
from dp.ledger.parsing import canonical_object
from dp.ledger.receipts import demand_fields
from dp.ledger.trusted_log import LogEntries, TrustedLog
from dp.tlog import tiles
from dp.tlog.merkle import Frontier
from dp.tlog.notes import Checkpoint, open_checkpoint, parse_verifier
from dp.tlog.witness import WitnessPolicy

_ASK_ABOUT_BACKUP = (
    "Ask the operator, who may have restored an older backup. What this device remembers stays: it "
    "takes part again once the ledger extends that."
)


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

    @contextmanager
    def accused(self) -> Iterator[None]:
        """What is found wrong with the record in here is the operator's fault, with this evidence.

        Raises:
            LedgerRefusal: for every LedgerError, with its reason and values.
        """
        try:
            yield
        except LedgerError as error:
            raise refusal(error, self.evidence()) from error

    def demand(self, known: Mapping[str, object]) -> None:
        """Each of these fields of the record is what this device knows.

        Raises:
            LedgerRefusal: ``release-mismatch``.
        """
        with self.accused():
            demand_fields(self.record, known)


def refusal(error: LedgerError, evidence: Mapping[str, object]) -> LedgerRefusal:
    """A lasting refusal for what was shown."""
    return LedgerRefusal(
        error.reason,
        error.message,
        expected=error.expected,
        found=error.found,
        remedy=error.remedy,
        evidence=evidence,
        lasting=True,
    )


def parsed(entry: bytes) -> dict[str, object]:
    """A record in its only reading; it nests no deeper than what is done with it can follow.

    Raises:
        LedgerRefusal: ``release-mismatch``.
    """
    try:
        return canonical_object(entry)
    except LedgerError as error:
        raise LedgerRefusal("release-mismatch", _malformed(error).message) from error


def _malformed(error: LedgerError) -> LedgerError:
    return LedgerError("release-mismatch", f"The ledger's record: {error}")


class WatchedLog:
    """The log of one ledger key."""

    def __init__(
        self,
        files: LedgerFiles,
        journal: Journal,
        verifier: str,
        witnesses: WitnessPolicy | None,
    ) -> None:
        self._files = files
        self._journal = journal
        self._key = parse_verifier(verifier)
        self._witnesses = witnesses
        self._name = "checkpoint-" + hashlib.sha256(verifier.encode()).hexdigest()[:16]

    def remembered(self) -> Checkpoint | None:
        """The last checkpoint that was verified and found consistent."""
        note = self.remembered_note()
        return None if note is None else open_checkpoint(note, self._key)

    def remembered_note(self) -> bytes | None:
        return self._journal.load_blob(self._name)

    async def advance(self, size_min: int = 0) -> TrustedLog:
        """The log up to its current checkpoint, which is remembered if it extends the last one.

        Raises:
            LedgerRefusal: ``ledger-forked`` or ``ledger-too-large``.
            LedgerError: what another try may mend: a stale replica's note, a file that is missing,
                or ``release-not-proven`` for a log of fewer leaves than ``size_min``.
        """
        note = await self._files.get("checkpoint")
        if note is None:
            raise LedgerError("checkpoint-missing", "The ledger serves no checkpoint.")
        log = TrustedLog(self._key, self._witnesses, self.remembered())
        shown = {"checkpoint": note, "remembered": self.remembered_note()}
        try:
            new = log.open(note)
        except LogShrank as error:
            raise Unmended(
                LedgerRefusal(
                    "ledger-rolled-back",
                    "The ledger is shorter than this device has seen it.",
                    expected=f"at least {log.checkpoint.size} leaves",
                    found=error.found,
                    remedy=_ASK_ABOUT_BACKUP,
                    evidence=shown,
                    lasting=True,
                )
            ) from error
        except LogTooLarge as error:
            raise refusal(error, shown) from error
        files = await self._files.fetch(log.growth_paths(new))
        try:
            grown = log.extend(files.get, new)
        except LogForked as error:
            raise LedgerRefusal(
                "ledger-forked",
                "The ledger does not extend what this device has seen of it.",
                expected=f"{log.checkpoint.size} leaves under {log.checkpoint.root.hex()}",
                found=f"{new.size} leaves under {new.root.hex()}",
                remedy=_ASK_ABOUT_BACKUP,
                evidence={**shown, "proof": list(error.proof)},
                lasting=True,
            ) from error
        if new != log.last:
            self._journal.save_blob(self._name, note)
        if new.size < size_min:
            raise LedgerError(
                "release-not-proven",
                "The ledger does not reach the leaf that it should hold.",
                expected=f"at least {size_min} leaves",
                found=new.size,
            )
        return grown

    async def prove(self, leaf_index: int) -> Proven:
        """The record at a leaf of the log.

        Raises:
            LedgerRefusal: as :meth:`advance`, ``release-not-proven``, or ``release-mismatch`` for
                an entry that is not a record.
            LedgerError: as :meth:`advance`.
        """
        log = await self.advance(leaf_index + 1)
        note = self.remembered_note()
        assert note is not None  # noqa: S101  advance has remembered it
        files = await self._files.fetch(log.leaf_paths(leaf_index))
        try:
            leaf = log.leaf(files.get, leaf_index)
        except LeafUnproven as error:
            raise LedgerRefusal("release-not-proven", str(error)) from error
        unparsed = Proven({}, leaf_index, leaf.entry, leaf.proof, note)
        try:
            return replace(unparsed, record=leaf.record())
        except LedgerError as error:
            raise refusal(_malformed(error), unparsed.evidence()) from error

    async def bundle(self, number: int, size: int) -> list[tuple[int, dict[str, object]]]:
        """Leaf indices and records of one bundle of a log of ``size`` leaves; unverified."""
        bundle = tiles.bundle_at(number, size)
        files = await self._files.fetch([bundle.path])
        entries = tiles.parse_bundle(tiles.fetch(files.get, bundle), bundle.width)
        first = number * tiles.TILE_WIDTH
        return [(first + offset, parsed(entry)) for offset, entry in enumerate(entries)]

    async def entries(self, checkpoint: Checkpoint, frontier: Frontier) -> AsyncIterator[bytes]:
        """Every entry after those of ``frontier``, which moves, in order; that with those before
        they are the whole log is proven when the iteration ends.

        Raises:
            LedgerRefusal: ``ledger-incomplete``, or ``ledger-forked`` if they are not what the
                checkpoint signs.
        """
        log = LogEntries(frontier)
        for bundle in log.bundles(checkpoint.size):
            files = await self._files.fetch([bundle.path])
            try:
                entries = log.take(files.get, bundle)
            except LedgerError as error:
                raise LedgerRefusal("ledger-incomplete", str(error)) from error
            for entry in entries:
                yield entry
        try:
            log.finish(checkpoint)
        except RootMismatch as error:
            raise LedgerRefusal(
                "ledger-forked",
                "The ledger's records are not those that its checkpoint signs.",
                expected=checkpoint.root.hex(),
                remedy="Try again; if it persists, ask the operator.",
            ) from error
