"""Whose an example is: the key ``unit``, for tasks that protect persons or documents."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from client_sdk.training.row_forms.forms import record_of
from client_sdk.training.row_forms.values import at_most, is_list, only

UNIT = "unit"
_EXACT_MAX = 1 << 53  # floats beyond are several whole numbers


def owners_of(example: Any) -> tuple[str, ...]:
    """The different names under ``unit``, in order; empty without any, or with one that is none.

    A name is a text that is not blank, or a whole number, which tables may hold as a float: 7, 7.0
    and "7" are one name. Space around it and how its letters are composed in Unicode make no other
    one. Several stand in a list.
    """
    if not isinstance(example, Mapping):
        example = record_of(example)
    value: Any = example.get(UNIT) if isinstance(example, Mapping) else None
    names = [_name(value) for value in (at_most(value, "Owners") if is_list(value) else [value])]
    return () if None in names else tuple(dict.fromkeys(name for name in names if name))


def _name(value: Any) -> str | None:
    value = only(value)
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip() or None
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    whole = isinstance(value, float) and abs(value) <= _EXACT_MAX and value.is_integer()
    return str(int(value)) if whole else None
