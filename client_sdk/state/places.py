"""Which example, or which unit, is at which place of a device's list, for tasks with a schedule.

The part of an example follows from its place (``dp.schedule``), so an example that moves would be
in more sums than its account says. A list may grow, and an example may be taken out of its place;
what was seen at one place never comes at another.

Units that rows name (a person, a document) have places by their names: a known one is where it was,
whatever became of its rows, and a new one where its first row stands, as an example is; where other
rows stood before, it comes at the end. So nothing can move, no place follows from which other units
there are, and no list of units is refused.

The record has a keyed fingerprint for each place, sealed as all else: of the example that was there
last, or of none. It is written before anything is trained, so the next process compares with all
that any contribution was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from client_sdk.errors import StateError, TaskRefusal
from client_sdk.state.journal import Journal

_BYTES = 16
_NONE = bytes(_BYTES)
_ELSEWHERE = "one that was at another place"


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``places``: a fingerprint of 16 bytes for each place; zeros: no example was there yet."""

    version: int = 1
    places: bytes = b""


class KnownPlaces:
    """The places of one schedule in a journal."""

    def __init__(self, journal: Journal, schedule: str) -> None:
        """``schedule``: as :class:`dp.accounting.budget.Charge` has it."""
        self._journal = journal
        self._name = "places-" + schedule[:32]

    def check(self, contents: Sequence[bytes]) -> None:
        """Return if no example has moved; what is new is on disk then.

        Args:
            contents: one for each place; empty where no example is.

        Raises:
            TaskRefusal: ``data-moved``, of the first place where another example is than before, or
                one that was elsewhere, or none any more since the list is shorter.
            StateError: ``state-damaged``.
        """
        before = _places_in(self._journal, self._name)
        now = [_fingerprint(self._journal, self._name, content) for content in contents]
        left = {old for old, new in zip(before, now, strict=False) if old != new} - {_NONE}
        for place, (old, new) in enumerate(zip(before, now, strict=False)):
            if new not in (_NONE, old) and (old != _NONE or new in left):
                raise _moved(place, _ELSEWHERE if new in left else "another one")
        if len(now) < len(before):
            raise _moved(len(now), f"a list of {len(now)} places, which was longer")
        for place in range(len(before), len(now)):
            if now[place] in left:
                raise _moved(place, _ELSEWHERE)
        kept = [new if new != _NONE else old for old, new in zip(before, now, strict=False)]
        after = b"".join((*kept, *now[len(before) :]))
        if after != b"".join(before):
            self._journal.save_blob(self._name, msgspec.msgpack.encode(_Record(places=after)))


class KnownUnits:
    """The places of the units of one schedule in a journal."""

    def __init__(self, journal: Journal, schedule: str) -> None:
        """``schedule``: as :class:`dp.accounting.budget.Charge` has it."""
        self._journal = journal
        self._name = "units-" + schedule[:32]

    def places(self, units: Mapping[str, int], length: int) -> tuple[list[int], int]:
        """The place of each unit, and how many places there are; what is new is on disk then.

        Args:
            units: of each name the first row.
            length: of the whole list.

        Raises:
            StateError: ``state-damaged``.
        """
        before = _places_in(self._journal, self._name)
        known = {old: place for place, old in enumerate(before) if old != _NONE}
        after = [*before, *[_NONE] * (length - len(before))]
        places = []
        for unit, first in units.items():
            new = _fingerprint(self._journal, self._name, _encoded(unit))
            if new not in known:
                known[new] = first if first >= len(before) else len(after)
                after[known[new] :] = [new, *after[known[new] + 1 :]]
            places.append(known[new])
        if after != before:
            record = _Record(places=b"".join(after))
            self._journal.save_blob(self._name, msgspec.msgpack.encode(record))
        return places, len(after)


def _encoded(unit: str) -> bytes:
    return unit.encode(errors="surrogatepass")


def _places_in(journal: Journal, name: str) -> list[bytes]:
    record = journal.load_record(name, _Record) or _Record()
    if len(record.places) % _BYTES:
        raise StateError("state-damaged", f"The journalled {name} has a broken place.")
    starts = range(0, len(record.places), _BYTES)
    return [record.places[start : start + _BYTES] for start in starts]


def _fingerprint(journal: Journal, name: str, content: bytes) -> bytes:
    return bytes.fromhex(journal.fingerprint(name, content)) if content else _NONE


def _moved(place: int, found: str) -> TaskRefusal:
    return TaskRefusal(
        "data-moved",
        "An example is not where it was, and it would be in more sums of this task than its noise "
        "is for.",
        expected=f"at place {place} (from 0) the example of before, or none",
        found=found,
        remedy="Put every example back where it was. One that is to go leaves its place empty (a "
        "line {} of a file); new ones come at the end. The list as it is now may serve in another "
        "task.",
    )
