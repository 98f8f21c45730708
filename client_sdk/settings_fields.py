"""Fields of settings, checked where they are made: a limit that nothing can exceed is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from numbers import Integral, Real
from typing import Any

_SETS: dict[str, type] = {"frozenset[str]": str, "frozenset[bytes]": bytes}


def check_fields(settings: Any) -> None:
    """Refuse what is not of its field's kind, by the annotations of a frozen dataclass.

    Numbers are at least 0 and not NaN; a set may be given as any iterable but a text or a mapping,
    and becomes a frozenset. Fields of other kinds are not looked at.

    Raises:
        ValueError: the field, what it was given, and what it takes.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        kind = str(each.type).removesuffix(" | None")
        if value is None and kind != each.type:
            continue
        if kind in ("int", "float"):
            _demand_number(each, value, Integral if kind == "int" else Real)
        elif kind in _SETS:
            object.__setattr__(settings, each.name, _as_set(each, value, _SETS[kind]))


def demand_positive(settings: Any, *names: str) -> None:
    """Refuse fields that no work can be done with.

    Raises:
        ValueError: one that is 0 or infinite.
    """
    for name in names:
        value = getattr(settings, name)
        if value == 0 or math.isinf(value):
            raise ValueError(f"{name} is {value!r}, not finite and above 0")


def _demand_number(each: Field[Any], value: Any, kind: type) -> None:
    takes = "a whole number" if kind is Integral else "a number"
    counts = isinstance(value, kind) and not isinstance(value, bool)
    if not counts:
        raise ValueError(f"{each.name} is {value!r}, not {takes}")
    if not value >= 0:  # nor is NaN
        raise ValueError(f"{each.name} is {value!r}, not {takes} of at least 0")


def _as_set(each: Field[Any], value: Any, kind: type) -> frozenset[Any]:
    takes = "a set of texts" if kind is str else "a set of bytes: bytes.fromhex(...) takes hex"
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{each.name} is {value!r}, not {takes}")
    found = frozenset(value)
    for element in found:
        if not isinstance(element, kind):
            raise ValueError(f"{each.name} holds {element!r}, and is {takes}")
    return found
