"""Which proxy a request goes through, as the environment's variables say.

``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, in small or capital letters; small
ones count first, and an empty one takes a capital one back. As with curl, a loopback address goes
through the proxy like any other unless ``no_proxy`` lists it. ``HTTP_PROXY`` in capital letters is
not read in a CGI program, where a caller's header sets it (httpoxy, CVE-2016-5385).
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from secagg.errors import ConfigurationError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Proxy:
    """One proxy. ``url`` has no credentials and may be shown.

    ``authorization``: value of the header ``Proxy-Authorization``; None: no credentials were given.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Head fields for the proxy alone."""
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}


def proxy_for(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for a request to ``url``; None: it goes straight there.

    Raises:
        ConfigurationError: ``proxy-malformed``, ``proxy-unsupported``; the value is not shown,
            since it may hold a password.
    """
    target = urlsplit(url)
    name = f"{target.scheme}_proxy"
    value = _value(environment, name)
    if value is None:
        name = "all_proxy"
        value = _value(environment, name)
    if not value or not target.hostname:
        return None
    port = target.port or _PORTS.get(target.scheme, 0)
    if goes_straight(target.hostname, port, _value(environment, "no_proxy") or ""):
        return None
    return _parsed(value, name)


def goes_straight(host: str, port: int, no_proxy: str) -> bool:
    """Whether an entry of ``no_proxy`` names the host.

    Entries, between commas or white space: ``*``, a name with all names under it, an address, a
    range of addresses (``10.0.0.0/8``), each but the first with ``:port`` if that port alone is
    meant.
    """
    host = host.lower().rstrip(".")
    return any(_names(entry, host, port) for entry in no_proxy.lower().replace(",", " ").split())


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    before, colon, after = entry.rpartition(":")
    if colon and after.isdecimal() and (":" not in before or before.endswith("]")):
        if int(after) != port:
            return False
        entry = before
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = entry.lstrip("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False


def _value(environment: Mapping[str, str], name: str) -> str | None:
    if name in environment:
        return environment[name].strip()
    if name == "http_proxy" and "REQUEST_METHOD" in environment:
        return None
    value = environment.get(name.upper())
    return None if value is None else value.strip()


def _parsed(value: str, name: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        host, port, parts = None, None, SplitResult("http", "", "", "", "")
    if parts.scheme not in _PORTS:
        raise ConfigurationError(
            "proxy-unsupported",
            f"The variable {name} names a kind of proxy that is not supported.",
            expected="http or https",
            found=parts.scheme[:20],
            remedy=f"Set {name} to an HTTP proxy, or leave it out.",
        )
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigurationError(
            "proxy-malformed",
            f"The variable {name} does not hold the URL of a proxy.",
            expected="http://host:port or http://user:password@host:port",
            remedy="In user and password, write characters such as @, :, /, # and % as %40, %3A, "
            "%2F, %23 and %25.",
        )
    shown = f"[{host}]" if ":" in host else host
    return Proxy(f"{parts.scheme}://{shown}:{port}", _authorization(parts))


def _authorization(parts: SplitResult) -> str | None:
    if parts.username is None and parts.password is None:
        return None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
