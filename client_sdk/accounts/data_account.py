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
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from platformdirs import user_state_path

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.registry import (
    Charged,
    DataRecord,
    Member,
    Registry,
    is_damage,
    set_key_aside,
)
from client_sdk.errors import PolicyRefusal, StateError
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.accounting.budget import Account, Entry
from secagg.http_api import EnrolmentBundle
from secagg.manifest import Manifest

MARK = "data"  # of a state folder: which data set it serves
_UNNAMED = ""  # the id of everything of a user that no app has named
_ID_BYTES_MAX = 1_024
_DELTA = 1e-5  # of tasks whose delta an earlier version did not keep


def default_root() -> Path:
    """Where state folders lie that an app does not name."""
    try:
        return user_state_path("secagg")
    except RuntimeError as error:
        raise StateError(
            "no-home",
            "This user has no home folder, where the device's state would be.",
            remedy="Name a state folder, or set HOME or XDG_STATE_HOME.",
        ) from error


@dataclass(frozen=True)
class DataChoice:
    """The app's word about its data.

    Attributes:
        data_id: its stable name, kept in Unicode's form NFC; None: no word.
        registry: the folder of the records; None: the one that the state folder remembers, else
            ``data`` in the user's state folder.
        root: where the state folder lies, if the app did not name it. All folders there count as
            one data set, but for those whose apps name their data.
    """

    data_id: str | None = None
    registry: Path | None = None
    root: Path | None = None

    def __post_init__(self) -> None:
        if self.data_id is None:
            return
        try:
            found: int | str = len(self.data_id.encode())
        except UnicodeEncodeError:
            found = "no UTF-8"
        if not (isinstance(found, int) and 0 < found <= _ID_BYTES_MAX):
            raise StateError(
                "data-id",
                "A data id is a text of the app's own choice.",
                expected=f"1 to {_ID_BYTES_MAX} bytes of UTF-8",
                found=found,
                remedy="Name the data by a shorter text, or by one that is text.",
            )
        object.__setattr__(self, "data_id", unicodedata.normalize("NFC", self.data_id))


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a state folder remembers. ``tag``: empty of a folder that counts alone.

    ``name``: fingerprint of the data id under the folder's own key. ``counted``: charges that the
    record had when the folder was last opened. ``told``: whether the app knows what counts.
    """

    version: int = 1
    registry: str = ""
    tag: str = ""
    name: str = ""
    counted: int = 0
    told: bool = False


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
        self._named = tag != registry.tag(_UNNAMED)

    @property
    def renewed(self) -> int:
        """How often the record was begun anew after a loss."""
        return self._record.renewed

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
            raise (_missing(self._registry.folder) if is_damage(error) else error) from error
        if record is None:
            raise _missing(self._registry.folder)
        return record


def _grouped(entries: list[Entry]) -> Entry:
    """One cohort's charges to k identities: their data move the same sum by k clips."""
    k = len(entries)
    longest = max(entries, key=lambda entry: len(entry.charges))
    if k == 1:
        return longest
    charges = tuple(
        msgspec.structs.replace(
            charge,
            l2_squared=str(int(charge.l2_squared) * k * k),
            l1=str(int(charge.l1) * k),
            draws=charge.draws * k,
        )
        for charge in longest.charges
    )
    return msgspec.structs.replace(longest, charges=charges)


class DataDoor:
    """Opens the account of the data that a state folder serves; use it under the folder's lock."""

    def __init__(
        self,
        journal: Journal,
        folder: Path,
        choice: DataChoice,
        bundle: EnrolmentBundle,
        now_s: float,
    ) -> None:
        """``now_s``: Unix seconds."""
        self._journal = journal
        self._folder = folder
        self._choice = choice
        self._now_s = now_s
        self._mark = journal.load_record(MARK, Mark) or Mark()
        self._member = Member(
            id=_id_of(journal),
            path=str(folder.absolute()),
            identity=bundle.certificate.identity_key.hex(),
            aggregator=bundle.task_key.hex(),
            not_after=bundle.certificate.not_after,
        )
        self._nameless = journal.fingerprint(MARK, _UNNAMED.encode())

    @property
    def told(self) -> bool:
        """Whether the app was told what the account counts."""
        return self._mark.told

    def tell(self) -> None:
        """Remember that it was."""
        self._remember(msgspec.structs.replace(self._mark, told=True))

    def open(self, account: DeviceAccount, *, renew: bool = False) -> DataAccount | None:
        """The data's account; None if the folder counts alone.

        The folder is registered, and all that its own account has is in the record, when it
        returns.

        Args:
            renew: the app's word to begin anew where the record is gone.

        Raises:
            StateError: ``data-account-missing``: the folder was registered, and the record is
                gone, damaged or an older one; or a folder beside this one cannot be counted.
                ``data-of-another``: the folder serves another data set. ``data-id``. Also as
                :class:`client_sdk.accounts.registry.Registry`.
        """
        mark, data_id = self._mark, self._data_id()
        if data_id is None and not mark.tag:
            return None
        name = mark.name if data_id is None else self._fingerprint(data_id)
        joined = bool(mark.tag) and name == mark.name
        if mark.tag and not joined and mark.name != self._nameless:
            raise StateError(
                "data-of-another",
                f"The state folder {self._folder} serves another data set.",
                remedy="Keep the data id, and give each data set a state folder of its own.",
            )
        if renew and data_id is None:
            raise StateError(
                "data-id",
                "A data account is begun anew by its data id, which this folder does not hold.",
                remedy="Name the data id that the app uses.",
            )
        place = self._place()
        registry = _registry(place, joined=joined, renew=renew)
        tag = mark.tag if data_id is None else registry.tag(data_id)
        with registry.lock():
            counted = mark.counted if joined else None
            record = _record(registry, tag, self._member.id, counted, renew=renew)
            if data_id == _UNNAMED:
                record = self._with_folders_beside(record, place, account.is_new)
            data = DataAccount(registry, tag, self._member, record, self._now_s)
            data.register(*account.own())
        self._remember(
            msgspec.structs.replace(
                mark,
                registry=str(place.absolute()),
                tag=tag,
                name=name,
                counted=data.charges,
                told=mark.told and joined and not renew,
            )
        )
        return data

    def _data_id(self) -> str | None:
        """The id, if it is known: a folder remembers that of its data by a fingerprint alone."""
        if self._choice.data_id is not None:
            return self._choice.data_id
        nameless = self._mark.name == self._nameless
        if nameless or (self._choice.root is not None and not self._mark.tag):
            return _UNNAMED
        return None

    def _place(self) -> Path:
        if self._choice.registry is not None:
            return self._choice.registry
        return Path(self._mark.registry) if self._mark.registry else default_root() / "data"

    def _fingerprint(self, data_id: str) -> str:
        return self._journal.fingerprint(MARK, data_id.encode())

    def _with_folders_beside(self, record: DataRecord, place: Path, is_new: bool) -> DataRecord:
        """With what folders of an earlier version have, which are in no record yet.

        A new folder must not begin beside one that cannot be read; one that has an account of its
        own begins nothing.
        """
        if self._choice.root is None:
            return record
        for path in sorted(self._choice.root.iterdir()):
            if path in (self._folder, place):
                continue
            try:
                found = _read(path)
            except StateError:
                if is_new:
                    raise
                continue
            if found is not None:
                member, charges, given = found
                record = record.with_member(member).with_charges(charges, given)
        return record

    def _remember(self, mark: Mark) -> None:
        if mark != self._mark:
            self._journal.save_blob(MARK, msgspec.msgpack.encode(mark))
            self._mark = mark


def look_at(journal: Journal) -> DataAccount | None:
    """The account of the data that a state folder serves, as it is; None if it counts alone.

    For a look: nothing is written, and no task is asked for.

    Raises:
        StateError: ``data-account-missing``; as :class:`client_sdk.accounts.registry.Registry`.
    """
    mark = journal.load_record(MARK, Mark)
    if mark is None or not mark.tag:
        return None
    registry = _registry(Path(mark.registry), joined=True, renew=False)
    own = _id_of(journal)
    record = _record(registry, mark.tag, own, mark.counted, renew=False)
    (member,) = (member for member in record.members if member.id == own)
    return DataAccount(registry, mark.tag, member, record, 0.0)


def _registry(place: Path, *, joined: bool, renew: bool) -> Registry:
    """A registry whose key is gone, but not its records, or not its folders, is not a new one."""
    if not renew and not Registry.has_key(place) and (joined or Registry.has_records(place)):
        raise _missing(place)
    try:
        return Registry(place)
    except StateError as error:
        if not is_damage(error):
            raise
        if not renew:
            raise _missing(place) from error
    set_key_aside(place)
    return Registry(place)


def _record(
    registry: Registry, tag: str, folder: str, counted: int | None, *, renew: bool
) -> DataRecord:
    """The record, or a new one.

    ``counted``: charges that it had when the folder was last opened, which must be in it; None: the
    folder is new to it.
    """
    damaged = False
    try:
        record = registry.load(tag)
    except StateError as error:
        if not is_damage(error):
            raise
        record, damaged = None, True
    lost = damaged
    if counted is not None:
        lost = record is None or not record.holds(folder, counted)
    if not lost:
        return record or DataRecord()
    if not renew:
        raise _missing(registry.folder)
    if damaged:
        registry.set_aside(tag)
    record = record or DataRecord()
    return msgspec.structs.replace(record, renewed=record.renewed + 1)


def _read(folder: Path) -> tuple[Member, list[Charged], dict[str, str]] | None:
    """What a folder has whose device has not come yet; until then its id stands for its device.

    None of one without an account, or in a record already.
    """
    try:
        if (folder / MARK).exists() or not (folder / "account").is_file():
            return None
        journal = Journal(folder, open_storage_key(folder))
        charges, given = DeviceAccount(journal, _DELTA).own()
        name = _id_of(journal)
    except (OSError, StateError) as error:
        raise StateError(
            "data-account-missing",
            f"{folder} has an account of the same data, and it cannot be read: {error}",
            remedy="Run its device once, or remove the folder if its account is lost. Or name this "
            "device's data with a data id: then that folder does not count.",
        ) from error
    charged = [
        Charged(identity=name, aggregator="", delta=delta, entry=entry) for entry, delta in charges
    ]
    return Member(id=name, path=str(folder.absolute()), identity=name), charged, given


def _id_of(journal: Journal) -> str:
    """A state folder's name for itself, wherever it lies: as lasting as its key."""
    return journal.fingerprint("folder", b"")


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


def _missing(place: Path) -> StateError:
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
