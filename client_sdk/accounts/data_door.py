"""Which data a state folder serves, and how their account is opened, joined or begun anew.

A folder remembers its data set by a fingerprint, and how many charges the record had. A record that
has fewer, or is gone, is not opened: it takes the app's word to begin anew.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import msgspec
from platformdirs import user_state_path

from client_sdk.accounts.data_account import UNNAMED, DataAccount, missing
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.registry import (
    Charged,
    DataRecord,
    Member,
    Registry,
    is_damage,
    set_key_aside,
)
from client_sdk.errors import StateError
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from secagg.http_api import EnrolmentBundle

MARK = "data"  # of a state folder: which data set it serves
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
        self._nameless = journal.fingerprint(MARK, UNNAMED.encode())

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
            record, lost = _record(registry, tag, self._member.id, counted, renew=renew)
            if data_id == UNNAMED:
                record = self._with_folders_beside(record, place, account.is_new)
            data = DataAccount(registry, tag, self._member, record, self._now_s)
            data.register(*account.own())
            if lost and (counted is None or data.charges < counted):
                data.note_loss()
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
            return UNNAMED
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
    record, _ = _record(registry, mark.tag, own, mark.counted, renew=False)
    (member,) = (member for member in record.members if member.id == own)
    return DataAccount(registry, mark.tag, member, record, 0.0)


def drop_record(journal: Journal) -> None:
    """Forget what was spent of the data that a state folder serves; nothing to do twice.

    Raises:
        StateError: as :class:`client_sdk.accounts.registry.Registry`.
    """
    mark = journal.load_record(MARK, Mark)
    if mark is None or not mark.tag or not Registry.has_key(Path(mark.registry)):
        return
    registry = Registry(Path(mark.registry))
    with registry.lock():
        registry.remove(mark.tag)


def _registry(place: Path, *, joined: bool, renew: bool) -> Registry:
    """A registry whose key is gone, but not its records, or not its folders, is not a new one."""
    if not renew and not Registry.has_key(place) and (joined or Registry.has_records(place)):
        raise missing(place)
    try:
        return Registry(place)
    except StateError as error:
        if not is_damage(error):
            raise
        if not renew:
            raise missing(place) from error
    set_key_aside(place)
    return Registry(place)


def _record(
    registry: Registry, tag: str, folder: str, counted: int | None, *, renew: bool
) -> tuple[DataRecord, bool]:
    """The record, or a new one; and whether it is begun anew for what was lost.

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
        return record or DataRecord(), False
    if not renew:
        raise missing(registry.folder)
    if damaged:
        registry.set_aside(tag)
    record = record or DataRecord()
    return msgspec.structs.replace(record, renewed=record.renewed + 1), True


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
