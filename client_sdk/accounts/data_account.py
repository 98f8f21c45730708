"""One account for one data set: what all identities and state folders of a user spent of it.

An account of a state folder alone would let a second bundle, or a new folder, spend a second budget
of the same data. The app names its data; every charge is written to that data's record
(:mod:`client_sdk.accounts.registry`) before it is written to the folder's own account, so it stays
when the folder goes. The limits of a policy hold for the whole record, under one lock for all
processes.

Two identities over the same data in one cohort would put two clips into one sum. A task therefore
takes one identity for each data set, and a cohort that was charged to two counts as a group.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from client_sdk.accounts.registry import (
    Charged,
    DataRecord,
    Member,
    Registry,
    is_damage,
)
from client_sdk.errors import PolicyRefusal, StateError
from dp.accounting.budget import Account, Entry
from dp.accounting.charges import Charge
from secagg.manifest import Manifest

UNNAMED = ""  # the id of everything of a user that no app has named


class DataAccount:
    """The record of one data set, as one of its state folders sees it."""

    def __init__(
        self, registry: Registry, tag: str, member: Member, record: DataRecord, now_s: float
    ) -> None:
        """``now_s``: Unix seconds."""
        self._registry = registry
        self._tag = tag
        self._member = member
        self._aggregator = member.aggregator
        self._record = record
        self._now_s = now_s
        self._holds = False
        self._named = tag != registry.tag(UNNAMED)

    @property
    def renewed(self) -> int:
        """How often the record was begun anew after a loss."""
        return self._record.renewed

    @property
    def lost_at(self) -> float:
        """When charges of others were last lost with the record, Unix seconds; 0: never."""
        return self._record.lost_at

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where state folders have served the data, whether or not they are still there."""
        return tuple(Path(member.path) for member in self._record.members if member.path)

    @property
    def named(self) -> bool:
        """Whether an app has named the data."""
        return self._named

    @property
    def charges(self) -> int:
        """Of all identities."""
        return len(self._record.charges)

    @property
    def charges_of_others(self) -> int:
        """Charges to other identities."""
        return sum(charge.identity != self._member.identity for charge in self._record.charges)

    @property
    def spent_without_a_name(self) -> bool:
        """Whether others count only because no app has named the data."""
        return not self.named and self.charges_of_others > 0

    def shown(self) -> dict[str, object]:
        """What the app is told of it: numbers alone."""
        return {
            "counts": "data" if self.named else "user",
            "folders": len(self.folders),
            "charges_of_others": self.charges_of_others,
            "renewed": self.renewed,
        }

    def refresh(self) -> None:
        """See what others have written.

        Raises:
            StateError: ``data-account-missing``.
        """
        self._record = self._load()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else charges the data meanwhile; what they did before is seen.

        Inside of itself it does nothing.

        Raises:
            StateError: ``data-account-missing``, ``state-in-use``.
        """
        if self._holds:
            yield
            return
        with self._registry.lock():
            self._holds = True
            try:
                self.refresh()
                yield
            finally:
                self._holds = False

    def add(self, charges: Iterable[tuple[Entry, float]], given: dict[str, str]) -> None:
        """Write charges of this device (with their deltas) down; on disk when it returns.

        Call it under :meth:`locked`.

        Raises:
            PolicyRefusal: ``data-in-task``: another identity has charged the same cohort.
        """
        mine = self._member.identity
        sums = {(charge.entry.cohort, charge.identity == mine) for charge in self._record.charges}
        new = self._charged(charges)
        for charge in new:
            cohort = charge.entry.cohort
            if (cohort, False) in sums and (cohort, True) not in sums:
                raise _in_task(charge.entry.task, "the same cohort")
        record = self._record.with_charges(new, given)
        if record != self._record:
            self._registry.save(self._tag, record)
            self._record = record

    def register(self, charges: Iterable[tuple[Entry, float]], given: dict[str, str]) -> None:
        """Write down that the folder serves the data, and what its own account has.

        Charges of two identities to one cohort are past refusing; they count as a group. Call it
        under the registry's lock.
        """
        record = _claimed(self._record.with_member(self._member), self._member)
        self._record = record.with_charges(self._charged(charges), given)
        self._registry.save(self._tag, self._record)

    def note_loss(self) -> None:
        """Write down that charges of others are lost. Call it under the registry's lock."""
        self._record = msgspec.structs.replace(self._record, lost_at=self._now_s)
        self._registry.save(self._tag, self._record)

    def whole(self, own: Account) -> Account:
        """This device's account and what others charged.

        Tasks of other aggregators have other names there, so that none counts as this one's.
        """
        cohorts = {entry.cohort: [entry] for entry in own.entries}
        mine = frozenset(cohorts)
        for charge in self._record.charges:
            if charge.identity == self._member.identity and charge.entry.cohort in mine:
                continue
            cohorts.setdefault(charge.entry.cohort, []).append(self._here(charge))
        return msgspec.structs.replace(own, entries=tuple(map(_grouped, cohorts.values())))

    def entry(self, cohort: str) -> Entry | None:
        """What this device was charged for a cohort (hex), as the record has it."""
        mine = self._member.identity
        found = (c.entry for c in self._record.charges if c.identity == mine)
        return next((entry for entry in found if entry.cohort == cohort), None)

    def given(self, model: str) -> str | None:
        """As :meth:`client_sdk.accounts.device_account.DeviceAccount.given`, of all identities;
        hex."""
        return self._record.given.get(model)

    def deltas(self) -> dict[str, float]:
        """By task, as :meth:`whole` names them."""
        return {self._here(charge).task: charge.delta for charge in self._record.charges}

    def demand_untaken(self, manifest: Manifest) -> None:
        """Return if no other identity serves the task with this data: the last one that it charged.

        One whose folder is gone or whose certificate has ended serves no more; what it spent
        counts.

        Raises:
            PolicyRefusal: ``data-in-task``.
        """
        there = {
            member.identity: member.path for member in self._record.members if self._serves(member)
        }
        for charge in reversed(self._record.charges):
            same = charge.aggregator in (self._aggregator, "")
            if not same or charge.entry.task != manifest.task:
                continue
            if charge.identity == self._member.identity:
                return
            if charge.identity in there:
                raise _in_task(manifest.task, there[charge.identity])

    def _serves(self, member: Member) -> bool:
        """Whether its device can still take part."""
        in_time = member.not_after == 0 or self._now_s <= member.not_after
        there = bool(member.path) and os.path.exists(Path(member.path, "storage.key"))
        return in_time and there

    def _here(self, charge: Charged) -> Entry:
        if charge.aggregator == self._aggregator:
            return charge.entry
        name = f"{charge.entry.task}@{charge.aggregator[:16] or 'unknown'}"
        return msgspec.structs.replace(charge.entry, task=name)

    def _charged(self, charges: Iterable[tuple[Entry, float]]) -> list[Charged]:
        return [
            Charged(
                identity=self._member.identity,
                aggregator=self._aggregator,
                delta=delta,
                entry=entry,
            )
            for entry, delta in charges
        ]

    def _load(self) -> DataRecord:
        try:
            record = self._registry.load(self._tag)
        except StateError as error:
            raise (missing(self._registry.folder) if is_damage(error) else error) from error
        if record is None:
            raise missing(self._registry.folder)
        return record


def _grouped(entries: list[Entry]) -> Entry:
    """One cohort's charges to k identities: their data move the same sum by k clips.

    An example that serves by a schedule moves it by the clips of those that gave its part: a charge
    for each part. One whose part is not known may have given any.
    """
    k = len(entries)
    longest = max(entries, key=lambda entry: len(entry.charges))
    if k == 1:
        return longest
    charges: list[Charge] = []
    for charge in longest.charges:
        if charge.counter is None:
            charges.append(_of_clips(charge, k, charge.draws * k))
            continue
        parts = Counter(map(_part, entries))
        unknown = parts.pop(msgspec.UNSET, 0)
        clips = {part: count + unknown for part, count in parts.items()}
        if unknown:
            clips[msgspec.UNSET] = unknown
        for i, (part, count) in enumerate(clips.items()):
            draws = 0 if i else charge.draws * k
            charges.append(msgspec.structs.replace(_of_clips(charge, count, draws), part=part))
    return msgspec.structs.replace(longest, charges=tuple(charges))


def _part(entry: Entry) -> int | msgspec.UnsetType:
    """The part that an identity gave to the cohort, where its account knows it."""
    return next((c.part for c in entry.charges if c.counter is not None), msgspec.UNSET)


def _of_clips(charge: Charge, clips: int, draws: int) -> Charge:
    return msgspec.structs.replace(
        charge,
        l2_squared=str(int(charge.l2_squared) * clips**2),
        l1=str(int(charge.l1) * clips),
        draws=draws,
    )


def _claimed(record: DataRecord, member: Member) -> DataRecord:
    """With the device's name at what was read of its folder before it came itself."""
    return msgspec.structs.replace(
        record,
        charges=tuple(
            msgspec.structs.replace(charge, identity=member.identity, aggregator=member.aggregator)
            if charge.identity == member.id
            else charge
            for charge in record.charges
        ),
    )


def missing(place: Path) -> StateError:
    """The refusal ``data-account-missing``. ``place``: the registry's folder."""
    return StateError(
        "data-account-missing",
        f"What was spent of this data by all folders is not in {place}: it was removed, damaged or "
        "put back from an older copy.",
        remedy=f"Put {place} back as it was, or name the folder where it is now. If it is lost, "
        "begin anew by Client.renew_data_account or secagg account renew: that counts what this "
        "state folder and the ledger know; each other folder brings its own part when it does the "
        "same.",
    )


def _in_task(task: str, where: str) -> PolicyRefusal:
    return PolicyRefusal(
        "data-in-task",
        f"Another identity of this user serves the task {task} with the same data, in {where}: "
        "together they would move a sum by two clips.",
        remedy="Take part with that one, or remove its folder if it is not to take part any more; "
        "what it spent stays counted.",
    )
