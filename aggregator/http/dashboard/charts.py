"""Inline SVG charts of a task's charges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 200, 56, 28, 16


def _nearest(value: float) -> str:
    return f"{value:.4g}"


def steps(
    title: str,
    values: Sequence[float | None],
    limit: float | None = None,
    shown: Callable[[float], str] = _nearest,
) -> str:
    """A chart of one value per charge, numbered from 1, with a line at ``limit``.

    Values that are None leave a gap; empty when there is nothing to show.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    top = max([*known, limit or 0.0]) * 1.08 or 1.0
    span = max(1, len(values))

    def x(position: float) -> float:
        return _LEFT + position * (_WIDTH - _LEFT - 12) / span

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _BOTTOM - _TOP)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for fraction in (0.0, 0.5, 1.0):
        mark = top / 1.08 * fraction
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 12}" '
            f'y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y(mark) + 4:.1f}" class="tick end">{shown(mark)}</text>'
        )
    for number, value in enumerate(values):
        if value is None:
            continue
        parts.append(
            f'<rect class="bar" x="{x(number + 0.15):.1f}" y="{y(value):.1f}" '
            f'width="{x(0.7) - x(0):.1f}" height="{y(0) - y(value):.1f}">'
            f"<title>{number + 1}: {shown(value)}</title></rect>"
        )
        if len(values) <= 24:
            parts.append(
                f'<text x="{x(number + 0.5):.1f}" y="{_HEIGHT - 8}" class="tick mid">'
                f"{number + 1}</text>"
            )
    if limit is not None:
        parts.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - 12}" '
            f'y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>'
        )
    return "".join([*parts, "</svg>"])
