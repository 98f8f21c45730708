"""Names that somebody mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that is probably meant; None if none is near."""
    return next(iter(difflib.get_close_matches(name, sorted(names), 1)), None)
