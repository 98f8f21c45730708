"""What keeps other sites out of an operator's browser: by which name the port was asked, which
site's page asks, and what the browser may do with an answer."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from aggregator.errors import Kind, Refusal
from aggregator.settings.options import Settings

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


def demand_form_from_here(request: web.Request) -> None:
    """
    Raises:
        Refusal: ``form-of-another-site``.
    """
    if not _is_from_here(request):
        raise Refusal(
            Kind.FORBIDDEN,
            "form-of-another-site",
            "This form was sent by a page of another site.",
            expected=request.host,
            found=_sender(request),
            remedy="Open the task's page here and use its button.",
        )


def demand_stream_from_here(request: web.Request) -> None:
    """
    Raises:
        Refusal: ``stream-of-another-site``.
    """
    if not _is_from_here(request):
        raise Refusal(
            Kind.FORBIDDEN,
            "stream-of-another-site",
            "These events were asked for by a page of another site.",
            expected=request.host,
            found=_sender(request),
            remedy="Open the page here; it follows the service by itself.",
        )


def _is_from_here(request: web.Request) -> bool:
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return False
    origin = request.headers.get("Origin")
    try:
        return origin is None or urlsplit(origin).netloc == request.host
    except ValueError:  # it is not a URL
        return False


def _sender(request: web.Request) -> str | None:
    return request.headers.get("Origin") or request.headers.get("Sec-Fetch-Site")


def demand_known_host(request: web.Request, settings: Settings) -> None:
    """Refuse a name that anybody's name server may have led here: the browser takes the page for
    that site's own. An address is not looked up, and over TLS the certificate has the names.

    Raises:
        Refusal: ``host-unknown``.
    """
    host = request.headers.get("Host")
    if host is None or request.scheme == "https":  # None: not a browser
        return
    name = _name(host)
    named = (settings.admin_names or "").split(",")
    known = {"localhost", *(each.strip().lower() for each in (settings.admin_host, *named))}
    if name and (name in known or _is_address(name)):
        return
    raise Refusal(
        Kind.FORBIDDEN,
        "host-unknown",
        "The dashboard is not known by this name.",
        expected="an IP address, localhost, admin_host or a name of admin_names",
        found=name[:100],
        remedy="Open it by its address, or add the name to the setting admin_names.",
    )


def _name(host: str) -> str:
    """Without a port, and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
