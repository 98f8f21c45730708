"""What every line of a request carries: its id, the caller's address and pseudonym, the cohort.

Background work that a request begins inherits its context; it carries nothing more as soon as the
request is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar


class _Carried:
    def __init__(self, fields: dict[str, object]) -> None:
        self.fields = fields
        self.over = False


_current: ContextVar[_Carried | None] = ContextVar("carried", default=None)


@contextmanager
def carrying(**fields: object) -> Iterator[None]:
    """Lines that are written in the block carry these fields."""
    carried = _Carried(fields)
    before = _current.set(carried)
    try:
        yield
    finally:
        carried.over = True
        _current.reset(before)


def carry(**fields: object) -> None:
    """Lines of the request under way carry these fields too."""
    carried = _current.get()
    if carried is not None and not carried.over:
        carried.fields.update(fields)


def carried() -> Mapping[str, object]:
    found = _current.get()
    return {} if found is None or found.over else found.fields
