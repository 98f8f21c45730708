"""From figures to HTML: templates, the filters that they use, and the headers of every page.

A page consists of regions, each a template of its own, so that a stream can send those that have
changed. No page has a script or a style inline, and none loads anything from elsewhere.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from aiohttp import web
from markupsafe import Markup

from aggregator.http.dashboard.live import digest
from aggregator.http.dashboard.sites import HEADERS
from dp.accounting.figures import delta_shown, shown_down, shown_up

_FILES = Path(__file__).parent / "static"
_KINDS = {"dashboard.css": "text/css", "dashboard.js": "text/javascript"}
_MISSING = "not known"


class Page(NamedTuple):
    """``regions``: ids of its parts, in their order; each is the template ``folder/id.html``."""

    folder: str
    regions: Sequence[str]


def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("aggregator.http.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["when"] = _when
    made.filters["utc"] = lambda seconds: _when(seconds, " UTC")
    made.filters["span"] = span
    made.filters["size"] = _size
    made.filters["short"] = _short
    made.filters["epsilon"] = lambda value: "none" if value is None else shown_up(value)
    made.filters["down"] = shown_down
    made.filters["delta"] = delta_shown
    made.filters["known"] = lambda value: _MISSING if value is None else value
    made.globals["version_of"] = {name: _digest_of(name) for name in _KINDS}
    return made


class Renderer:
    def __init__(self) -> None:
        self._pages = environment()

    def html(self, template: str, /, *, status: int = 200, **values: Any) -> web.Response:
        text = self._pages.get_template(template).render(**values)
        return web.Response(text=text, status=status, content_type="text/html", headers=HEADERS)

    def regions(self, page: Page, values: Mapping[str, Any]) -> dict[str, str]:
        """Id -> HTML."""
        return {
            name: self._pages.get_template(f"{page.folder}/{name}.html").render(**values)
            for name in page.regions
        }

    def page(self, page: Page, title: str, stream: str, values: Mapping[str, Any]) -> web.Response:
        """``stream``: path of the events that keep it up to date."""
        made = self.regions(page, values)
        return self.html(
            "page.html",
            title=title,
            here=page.folder,
            stream=stream,
            now=values["now"],
            regions=[(name, digest(html), Markup(html)) for name, html in made.items()],  # noqa: S704  templates escape
        )


def file_routes() -> list[web.RouteDef]:
    async def file(request: web.Request) -> web.Response:
        name = request.path.lstrip("/")
        headers = {"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"}
        return web.Response(
            body=(_FILES / name).read_bytes(), content_type=_KINDS[name], headers=headers
        )

    return [web.get(f"/{name}", file) for name in _KINDS]


def _digest_of(name: str) -> str:
    return hashlib.sha256((_FILES / name).read_bytes()).hexdigest()[:12]


def _when(seconds: float | None, zone: str = "") -> Markup | str:
    """A moment; the script adds how long ago it is. ``zone``: said behind it."""
    if seconds is None:
        return _MISSING
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return Markup('<time datetime="{}">{}{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%Y-%m-%d %H:%M:%S"), zone
    )


def span(seconds: float) -> str:
    """A length of time in its largest unit: 40 s, 12 min, 3 h, 2 d."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _size(value: float | None) -> str:
    if value is None:
        return _MISSING
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= length:
            return f"{value / length:.1f} {unit}"
    return f"{value:.0f} B"


def _short(name: str, characters: int = 12) -> Markup:
    """The beginning of a long name; the whole of it is its title."""
    return Markup('<code title="{}">{}</code>').format(name, name[:characters])
