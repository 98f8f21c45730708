"""Which example is at which place of a device's list, for the tasks whose examples serve in turn.

The part of an example follows from its place (``dp.schedule``), so an example that moves would be
in more sums than its account says. A list may grow, and an example may be taken out of its place;
what was seen at one place never comes at another.

The record has a keyed fingerprint for each place, sealed as all else: of the example that was there
last, or of none. It is written before anything is trained, so the next process compares with all
that any contribution was made of.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        before = self._before()
        now = [self._fingerprint(content) for content in contents]
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

    def _before(self) -> list[bytes]:
        record = self._journal.load_record(self._name, _Record) or _Record()
        if len(record.places) % _BYTES:
            raise StateError("state-damaged", f"The journalled {self._name} has a broken place.")
        starts = range(0, len(record.places), _BYTES)
        return [record.places[start : start + _BYTES] for start in starts]

    def _fingerprint(self, content: bytes) -> bytes:
        if not content:
            return _NONE
        return bytes.fromhex(self._journal.fingerprint(self._name, content))


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
