"""Inline SVG charts of a task's charges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 8, 28, 44
_LABELS_MAX = 10  # along the x axis


def _nearest(value: float) -> str:
    """At most eight characters, three digits of them."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def steps(
    title: str,
    values: Sequence[float | None],
    limit: float | None = None,
    shown: Callable[[float], str] = _nearest,
    unit: str = "",
) -> str:
    """A chart of one value per charge, numbered from 1, with a line at ``limit``, the budget.

    Values that are None leave a gap; empty when there is nothing to show. ``unit``: of the y axis.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    most = max([*known, limit or 0.0]) or 1.0
    span = max(1, len(values))
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(position: float) -> float:
        return _LEFT + position * (right - _LEFT) / span

    def y(value: float) -> float:
        return floor - value / most * (floor - _TOP)

    def text(x: float, y: float, kind: str, words: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" class="tick {kind}">{escape(words)}</text>'

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        text(_LEFT - 8, _TOP - 14, "end", unit),
        text((_LEFT + right) / 2, _HEIGHT - 6, "mid", "charge"),
    ]
    for fraction in (0.0, 0.5, 1.0):
        at = y(most * fraction)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(text(_LEFT - 8, at + 4, "end", shown(most * fraction)))
    every = -(-len(values) // _LABELS_MAX)
    for number, value in enumerate(values, 1):
        if value is not None:
            parts.append(
                f'<rect class="bar" x="{x(number - 0.85):.1f}" y="{y(value):.1f}" '
                f'width="{x(0.7) - x(0):.1f}" height="{floor - y(value):.1f}">'
                f"<title>{number}: {escape(shown(value))}</title></rect>"
            )
        if number % every == 0 or every == 1:
            parts.append(text(x(number - 0.5), floor + 18, "mid", str(number)))
    if limit is not None:
        at = y(limit)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(text(right, at - 6, "end", f"budget {shown(limit)}"))
    return "".join([*parts, "</svg>"])
