"""Inline SVG charts of a task's charges, each with a title, axes with units, and its data in words.

Whoever cannot see a chart gets its ``<desc>``; whoever points at a bar, its ``<title>``. Colours
are classes of the style sheet. A value that is None is not known, and leaves a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 8, 28, 44
_LABELS_MAX = 10  # along the x axis
_ROW = 30  # height of a bar that lies
_NAMES = 96  # width of their names
Shown = Callable[[float], str]


def nearest(value: float) -> str:
    """At most eight characters, three digits of them."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass
class _Plot:
    """A frame with a y axis from 0 to ``most`` and numbered places along x."""

    title: str
    desc: str
    most: float
    first: int
    places: int
    shown: Shown
    unit: str
    parts: list[str] = field(default_factory=list)

    def x(self, position: float) -> float:
        return _LEFT + position * (_WIDTH - _RIGHT - _LEFT) / max(1, self.places)

    def y(self, value: float) -> float:
        floor = _HEIGHT - _BOTTOM
        return floor - value / self.most * (floor - _TOP)

    def bar(self, place: int, low: float, high: float, kind: str, said: str) -> None:
        """At a place from 0, between two values."""
        self.parts.append(
            f'<rect class="{f"bar {kind}".strip()}" '
            f'x="{self.x(place + 0.15):.1f}" y="{self.y(high):.1f}" '
            f'width="{self.x(0.7) - self.x(0):.1f}" '
            f'height="{max(0.0, self.y(low) - self.y(high)):.1f}">'
            f"<title>{self.first + place}: {escape(said)}</title></rect>"
        )

    def limit(self, value: float, said: str) -> None:
        at = self.y(value)
        self.parts.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        self.parts.append(_text(_WIDTH - _RIGHT, _TOP - 14, "end", f"dashed: {said}"))

    def svg(self) -> str:
        right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        frame = [
            _text(4, _TOP - 14, "begin", self.unit),
            _text((_LEFT + right) / 2, _HEIGHT - 6, "mid", "charge"),
        ]
        for fraction in (0.0, 0.5, 1.0):
            at = self.y(self.most * fraction)
            frame.append(
                f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            frame.append(_text(_LEFT - 8, at + 4, "end", self.shown(self.most * fraction)))
        every = -(-self.places // _LABELS_MAX) or 1
        for place in range(self.places):
            number = self.first + place
            if number % every == 0 or every == 1:
                frame.append(_text(self.x(place + 0.5), floor + 18, "mid", str(number)))
        return _svg(self.title, self.desc, _HEIGHT, [*frame, *self.parts])


def _text(x: float, y: float, kind: str, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="tick {kind}">{escape(words)}</text>'


def _svg(title: str, desc: str, height: int, parts: Iterable[str]) -> str:
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}. '
            f'{escape(desc)}">',
            f"<title>{escape(title)}</title><desc>{escape(desc)}</desc>",
            *parts,
            "</svg>",
        ]
    )


def steps(
    title: str,
    values: Sequence[float | None],
    limit: float | None = None,
    shown: Shown = nearest,
    unit: str = "",
    *,
    first: int = 1,
    planned: tuple[int, float] | None = None,
    limit_name: str = "budget",
) -> str:
    """A bar for each charge, numbered from ``first``, with a line at ``limit``.

    Empty when there is nothing to show. ``unit``: of the y axis. ``planned``: number of the last
    charge, and the most that is spent then.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    places = len(values)
    most = max([*known, limit or 0.0])
    desc = f"{len(known)} of {places} charges have a value; the last is {shown(known[-1])}"
    desc += f"; {limit_name} {shown(limit)}" if limit is not None else ""
    if planned is not None:
        last, spent = planned
        most = max(most, spent)
        places = max(places, last - first + 1)
        desc += f"; at most {shown(spent)} after charge {last}"
    plot = _Plot(title, f"{desc}.", most or 1.0, first, places, shown, unit)
    for place, value in enumerate(values):
        if value is not None:
            plot.bar(place, 0.0, value, "", shown(value))
    if limit is not None:
        plot.limit(limit, f"{limit_name} {shown(limit)}")
    if planned is not None and planned[0] > first + len(values) - 1:
        here = plot.x(len(values) - 0.5), plot.y(known[-1])
        there = plot.x(planned[0] - first + 0.5), plot.y(planned[1])
        plot.parts.append(
            f'<line class="planned" x1="{here[0]:.1f}" y1="{here[1]:.1f}" '
            f'x2="{there[0]:.1f}" y2="{there[1]:.1f}"/>'
            f'<circle class="planned" cx="{there[0]:.1f}" cy="{there[1]:.1f}" r="3">'
            f"<title>{planned[0]}: at most {escape(shown(planned[1]))}</title></circle>"
        )
    return plot.svg()


def stacks(
    title: str,
    kinds: Sequence[tuple[str, str]],
    columns: Sequence[Sequence[int]],
    unit: str,
    *,
    first: int = 1,
) -> str:
    """Stacked bars. ``kinds``: name and class of each part; ``columns``: by charge, a number for
    each kind. Empty without a charge."""
    if not columns:
        return ""
    totals = [sum(column[part] for column in columns) for part in range(len(kinds))]
    named = ", ".join(f"{name} {total}" for (name, _), total in zip(kinds, totals, strict=True))
    plot = _Plot(
        title,
        f"{len(columns)} charges, all together: {named}.",
        float(max(1, *(sum(column) for column in columns))),
        first,
        len(columns),
        nearest,
        unit,
    )
    for place, column in enumerate(columns):
        below = 0
        for (name, kind), part in zip(kinds, column, strict=True):
            if part:
                plot.bar(place, below, below + part, kind, f"{name} {part}")
            below += part
    return plot.svg()


def spans(
    title: str,
    ranges: Sequence[tuple[float, float] | None],
    limit: float,
    limit_name: str,
    unit: str,
    *,
    first: int = 1,
) -> str:
    """A bar between two ends for each charge, with a line at ``limit``; empty if none is known."""
    known = [ends for ends in ranges if ends is not None]
    if not known:
        return ""
    below = sum(high < limit for _, high in known)
    plot = _Plot(
        title,
        f"{len(known)} of {len(ranges)} charges were measured; in {below} of them the upper end is "
        f"below {limit_name}; the last is {nearest(known[-1][0])} to {nearest(known[-1][1])}.",
        max(limit, *(high for _, high in known)) * 1.1,
        first,
        len(ranges),
        nearest,
        unit,
    )
    for place, ends in enumerate(ranges):
        if ends is not None:
            low, high = ends
            plot.bar(place, low, high, "", f"{nearest(low)} to {nearest(high)}")
    plot.limit(limit, limit_name)
    return plot.svg()


def rows(title: str, counts: Sequence[tuple[str, int]], unit: str) -> str:
    """Bars that lie, one for each name; empty where all are 0."""
    most = max((count for _, count in counts), default=0)
    if not most:
        return ""
    height = _ROW * len(counts) + 28
    right = _WIDTH - _RIGHT - 40
    parts = [_text((_NAMES + right) / 2, height - 6, "mid", unit)]
    for number, (name, count) in enumerate(counts):
        top = number * _ROW + 6
        width = count / most * (right - _NAMES)
        parts.append(_text(_NAMES - 8, top + 15, "end", name))
        parts.append(
            f'<rect class="bar lost" x="{_NAMES}" y="{top}" width="{width:.1f}" height="20">'
            f"<title>{escape(name)}: {count}</title></rect>"
        )
        parts.append(_text(_NAMES + width + 6, top + 15, "begin", f"{count:,}"))
    said = ", ".join(f"{name} {count}" for name, count in counts)
    return _svg(title, f"{unit}: {said}.", height, parts)
