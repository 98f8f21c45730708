"""The device's account after its state folder is lost: found again in the ledger.

Every charge lists the whole masking set of its cohort, this device by a pseudonym that only it can
make. A device that has its enrolment bundle walks the verified log once, makes its name for each
record's context, and writes down every charge that lists it. An account that exists is never
lowered: what it lacks is added.

What no ledger shows is not found: a cohort that has not ended yet (a client looks once more when
it has), and one that the aggregator unmasked without a record. A device may find a cohort that it
never paid for, because it stopped between the masking set and its debit; it counts too.

Records of version 1 list the devices in a sum alone, by their identity. A cohort that was charged
without a sum then lists nobody; it counts if the device was in a sum of that task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from client_sdk.accounts.device_account import DeviceAccount, Found
from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.state.journal import Journal
from client_sdk.threads import finish_in_thread
from dp.accounting.budget import Total
from dp.accounting.statements import lines
from dp.ledger.contributors import by_identity
from dp.ledger.parsing import parse_release, parse_task
from dp.ledger.records import recomputed_context
from dp.tlog.merkle import Frontier
from secagg.errors import SecaggError
from secagg.manifest import Manifest, manifest_digest

LEAVES_MAX = 1 << 16
"""Records that a device reads on its own; about a minute and a gigabyte at most."""
_SECOND_LOOK = "second-look"
_BYTES_PER_LEAF = 1 << 14  # on average; 256 pseudonyms and a few lines of cost


@dataclass(frozen=True)
class Recovered:
    """What the ledger says of this device, in the records that were read.

    Attributes:
        charges: cohorts that list it, by task.
        added: of those, how many its account lacked.
        unlisted: charges of its account (ctx, hex) that no record lists: of cohorts that have not
            ended, that the service failed before anybody had sent, or that it does not show. Empty
            where not all was read.
        leaves: records of the ledger that were read.
        cohort_max_s: by then a cohort that is open now has taken all its steps, in seconds.
        epsilons: what each of these tasks has cost by the account, unamplified, at its own delta;
            None for a task without differential privacy.
        deltas: of these tasks.
        totals: what the whole account has cost one example and one device.
        read: how far the ledger was read.
    """

    charges: Mapping[str, int]
    added: int
    unlisted: tuple[str, ...]
    leaves: int
    cohort_max_s: float
    epsilons: Mapping[str, float | None]
    totals: tuple[Total, ...] = ()
    deltas: Mapping[str, float] = field(default_factory=dict)
    read: LedgerRead | None = None


async def recover(
    ledger: LedgerWatch,
    account: DeviceAccount,
    identity_key: bytes,
    leaves_max: int = LEAVES_MAX,
    read: LedgerRead | None = None,
) -> Recovered:
    """Add every charge that the ledger shows to the account; on disk when it returns.

    Args:
        leaves_max: most records that are read now.
        read: how far an earlier call came whose charges the account has; None: all is read.

    Raises:
        LedgerRefusal: the ledger does not verify, is too long (``ledger-too-long``) or too slow
            (``ledger-deadline``), or has a
            record that lists this device and cannot be right (``release-mismatch``).
        BudgetError: it lists this device in more cohorts of a task than its manifest allows.
    """
    if read is None or read.ledger != ledger.verifier:
        read = LedgerRead(ledger=ledger.verifier)
    frontier = Frontier(read.size, read.hashes)
    walk = _Walk(ledger, identity_key, leaves_max * _BYTES_PER_LEAF, read, account.tasks())
    async with ledger.in_time():
        async for size, record in ledger.records(leaves_max, frontier):
            await walk.take(size, record)
        found = await walk.found()
    added = await finish_in_thread(account.restore, found)
    shown = {charge.ctx.hex() for charge in found} | walk.lists_nobody
    return Recovered(
        charges=Counter(charge.manifest.task for charge in found),
        added=added,
        unlisted=() if read.size else tuple(ctx for ctx in account.cohorts() if ctx not in shown),
        leaves=walk.leaves,
        cohort_max_s=walk.cohort_max_s,
        epsilons={
            charge.manifest.task: account.epsilon(charge.manifest.task)
            if lines(charge.manifest, 1)
            else None
            for charge in found
        },
        totals=account.totals(),
        deltas={charge.manifest.task: account.delta(charge.manifest.task) for charge in found},
        read=walk.read(frontier),
    )


class LedgerRead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far a ledger was read, so that a later look reads what has come since.

    ``ledger``: its verifier key. ``size``: leaves. ``hashes``: of their
    :class:`dp.tlog.merkle.Frontier`. ``tasks``: the leaf of each task by its manifest's digest.
    ``cohort_max_s``: as :class:`Recovered` has it.
    """

    ledger: str
    size: int = 0
    hashes: tuple[bytes, ...] = ()
    tasks: dict[bytes, int] = {}
    cohort_max_s: float = 0.0


class SecondLook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When to recover once more: a cohort that was open at the time of a loss has ended by then.

    ``due_s``: Unix seconds; 0: never again. ``restored``: whether the ledger shows charges that the
    folder had forgotten; else it is new, as far as anyone can see. ``looked``: schedules for which
    a new folder has looked before its first debit. ``read``: the leaves whose charges the account
    has; None: none are known.
    """

    due_s: float
    restored: bool = True
    looked: tuple[str, ...] = ()
    read: LedgerRead | None = None


def second_look(journal: Journal) -> SecondLook | None:
    """The look that is still to come."""
    look = journal.load_record(_SECOND_LOOK, SecondLook)
    return look if look is not None and look.due_s > 0 else None


def second_look_due(journal: Journal, now_s: float) -> bool:
    look = second_look(journal)
    return look is not None and look.due_s <= now_s


def plan_second_look(
    journal: Journal,
    due_s: float,
    *,
    restored: bool = True,
    looked: tuple[str, ...] = (),
    read: LedgerRead | None = None,
) -> None:
    """On disk when it returns. ``due_s``: Unix seconds; 0: it is done."""
    keep_look(journal, SecondLook(due_s=due_s, restored=restored, looked=looked, read=read))


def keep_look(journal: Journal, look: SecondLook) -> None:
    """On disk when it returns."""
    journal.save_blob(_SECOND_LOOK, msgspec.msgpack.encode(look))


class _Walk:
    """What was seen of the log so far: where its tasks are, and the records that are kept."""

    def __init__(
        self,
        ledger: LedgerWatch,
        identity_key: bytes,
        bytes_left: int,
        read: LedgerRead,
        charged: Collection[str],
    ) -> None:
        """``read``: where it begins. ``charged``: tasks of the account, if it does not begin at
        the first leaf."""
        self.leaves = 0
        self._ledger = ledger
        self._identity_key = identity_key
        self._bytes_left = bytes_left
        self._read = read
        self._tasks = dict(read.tasks)
        self.cohort_max_s = read.cohort_max_s
        self._listed: list[dict[str, object]] = []
        self._nobody_listed: list[dict[str, object]] = []  # charged without a sum, version 1
        self._charged = set(charged) if read.size else set()

    async def take(self, size: int, record: dict[str, object]) -> None:
        self._spend(size)
        leaf = self._read.size + self.leaves
        self.leaves += 1
        if record.get("type") == "task":
            self._task(record, leaf)
        elif record.get("type") == "release":
            held, list_bytes = await self._ledger.lists(record, self._identity_key)
            self._spend(list_bytes)
            if held:
                self._listed.append(record)
            elif by_identity(record) and record.get("outcome") == "charged":
                self._nobody_listed.append(record)

    @property
    def lists_nobody(self) -> set[str]:
        """Contexts of cohorts whose records list nobody."""
        return {str(record.get("ctx")) for record in self._nobody_listed}

    def read(self, frontier: Frontier) -> LedgerRead:
        """How far it came. ``frontier``: of all leaves, those before included."""
        return LedgerRead(
            ledger=self._read.ledger,
            size=frontier.size,
            hashes=frontier.hashes,
            tasks=self._tasks,
            cohort_max_s=self.cohort_max_s,
        )

    async def found(self) -> list[Found]:
        """In the order of the log, but for cohorts that list nobody."""
        manifests: dict[str, Manifest] = {}
        found = [await self._charge(record, manifests) for record in self._listed]
        tasks = self._charged | {charge.manifest.task for charge in found if charge.by_identity}
        own = [record for record in self._nobody_listed if record.get("task") in tasks]
        return found + [await self._charge(record, manifests) for record in own]

    def _task(self, record: dict[str, object], leaf: int) -> None:
        try:
            encoded, manifest, _ = parse_task(record)
        except SecaggError:
            return  # no charge can be under it: a device demands the manifest's signature
        self._tasks[manifest_digest(encoded)] = leaf
        d = manifest.deadlines
        steps_s = d.share_s + d.check_s + d.masked_input_s + d.confirm_s + d.unmask_s
        self.cohort_max_s = max(self.cohort_max_s, steps_s)

    async def _manifest(self, digest: str) -> Manifest:
        """The manifest of a digest (hex): read again, not kept of every task."""
        try:
            leaf = self._tasks[bytes.fromhex(digest)]
        except (ValueError, KeyError) as error:
            raise _mismatch("names a manifest that the ledger does not hold") from error
        return parse_task(await self._ledger.record(leaf))[1]

    async def _charge(self, record: dict[str, object], manifests: dict[str, Manifest]) -> Found:
        digest = str(record.get("manifest_digest"))
        if digest not in manifests:
            manifests[digest] = await self._manifest(digest)
        manifest = manifests[digest]
        try:
            entry = parse_release(record)
            expected = entry.ctx
            if entry.attempt is not None:
                expected = recomputed_context(entry, manifest.task, bytes.fromhex(digest))
        except SecaggError as error:
            raise _mismatch(f"does not parse: {error}") from error
        if entry.ctx != expected:
            raise _mismatch("has another context than follows from it")
        return Found(
            ctx=entry.ctx,
            manifest=manifest,
            models=entry.model_digests,
            by_identity=entry.attempt is None,
        )

    def _spend(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise LedgerRefusal(
                "ledger-too-long",
                "The ledger's records and lists are larger than this device reads at once.",
                remedy="To read them all: secagg account recover BUNDLE --leaves-max N.",
            )


def _mismatch(what: str) -> LedgerRefusal:
    return LedgerRefusal(
        "release-mismatch",
        f"A record that lists this device {what}.",
        remedy="Run secagg audit verify on the ledger, and ask the operator.",
    )
