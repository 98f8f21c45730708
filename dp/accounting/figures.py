"""Figures as they are shown: upper bounds rounded up, lower bounds rounded down.

An epsilon that is printed lower than it was computed is a claim that nobody proved. So text never
comes from ``round`` or a format such as ``.3f``, which go to the nearest number. Rounding is
decimal, of the shortest decimal that names the float: what is printed and read again as a float is
on the right side of the figure, and a figure that has few digits stays as it is.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

INFINITE = "infinite"
_DIGITS = 400  # a float has at most 309 before the point


def shown_up(value: float, digits: int = 4) -> str:
    """An epsilon, or another upper bound, for people: never less than ``value``.

    ``digits``: places after the point. Infinity is a word.

    Raises:
        ValueError: not a number.
    """
    return _shown(value, digits, ROUND_CEILING)


def shown_down(value: float, digits: int = 4) -> str:
    """What is left of a budget, or guaranteed, or a lower bound: never more than ``value``.

    Raises:
        ValueError: not a number.
    """
    return _shown(value, digits, ROUND_FLOOR)


def delta_shown(value: float, significant: int = 6) -> str:
    """A delta, rounded up to ``significant`` digits; trailing zeros are left out.

    Raises:
        ValueError: not a number.
    """
    if not math.isfinite(value):
        return _without_digits(value)
    rounded = Context(prec=significant, rounding=ROUND_CEILING).plus(Decimal(repr(value)))
    return f"{float(rounded):g}"


def limit_shown(value: float) -> str:
    """A limit that somebody set, in as few digits as name it exactly.

    Raises:
        ValueError: not a number.
    """
    if not math.isfinite(value):
        return _without_digits(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def upper(value: float, digits: int = 4) -> float | str:
    """:func:`shown_up` as a number where it is one: what a refusal has found."""
    return float(_rounded(value, digits, ROUND_CEILING)) if math.isfinite(value) else INFINITE


def lower(value: float, digits: int = 4) -> float | str:
    """:func:`shown_down` as a number where it is one."""
    return float(_rounded(value, digits, ROUND_FLOOR)) if math.isfinite(value) else INFINITE


def _shown(value: float, digits: int, rounding: str) -> str:
    if not math.isfinite(value):
        return _without_digits(value)
    return f"{_rounded(value, digits, rounding):f}"


def _rounded(value: float, digits: int, rounding: str) -> Decimal:
    context = Context(prec=_DIGITS, rounding=rounding)
    return Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), context=context)


def _without_digits(value: float) -> str:
    if math.isnan(value):
        raise ValueError("The figure is not a number.")
    return INFINITE if value > 0 else f"-{INFINITE}"
