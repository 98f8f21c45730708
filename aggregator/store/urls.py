"""Addresses of databases. A path never goes into a URL as text: it may hold ``?``, ``#`` or ``%``.

The options of a PostgreSQL URL (``?sslmode=require``) are libpq's, as every provider prints them.
They go to the driver, which reads them as libpq does; its own interface knows other names.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from secagg.errors import ConfigurationError

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}
# libpq's, without a counterpart in the driver, and without a bearing on what is protected.
_PASSED_OVER = frozenset(
    {
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)

_WAIT_MAX_S = 86_400
_SHOWN = 100


def sqlite_url(path: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(path))


def address(url: URL) -> str:
    """For messages: a file, or kind, host, port and name, without user, password and options."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database}"
    host = url.query.get("host", url.host or "localhost")
    host = host if isinstance(host, str) else ",".join(host)
    port = "" if url.port is None else f":{url.port}"
    return f"{url.get_backend_name()}://{host}{port}/{url.database or ''}"


def parsed_url(text: str) -> URL:
    """With an asynchronous driver named.

    Raises:
        ConfigurationError: ``settings-invalid``, without the text, which may hold a password.
    """
    url = None
    with contextlib.suppress(ArgumentError, ValueError):
        url = make_url(text)
    if url is None or url.drivername not in {*_DRIVERS, *_DRIVERS.values()}:
        raise ConfigurationError(
            "settings-invalid",
            "The setting database_url is not the address of a database of a known kind.",
            expected="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME",
            found="(not shown)" if url is None else f"{url.drivername}://...",
        )
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() == "postgresql":
        postgres_arguments(url)
    else:
        _check_file(url, text)
    return url


def _check_file(url: URL, text: str) -> None:
    """A database in memory forgets budgets, and each connection would have its own.

    Raises:
        ConfigurationError: ``settings-invalid``.
    """
    if "?" in text or url.host:
        raise ConfigurationError(
            "settings-invalid",
            "The setting database_url names more than a file.",
            expected="sqlite:///FILE",
            found="(not shown)",
            remedy="In a path write %3F for ? (and sqlite:////FILE for an absolute one).",
        )
    if url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "settings-invalid",
            "The setting database_url names no file: what a service has spent must outlive it.",
            expected="sqlite:///FILE",
            found=url.database or "no file",
        )


def postgres_arguments(url: URL) -> dict[str, Any]:
    """Arguments of ``asyncpg.connect``.

    Raises:
        ConfigurationError: ``settings-invalid`` for an option that the driver cannot honour.
    """
    options = {
        name: value if isinstance(value, str) else ",".join(value)
        for name, value in url.query.items()
        if name not in _PASSED_OVER
    }
    if "ssl" in options:  # the driver's own name for it
        options.setdefault("sslmode", options.pop("ssl"))
    if options.pop("channel_binding", "prefer") == "require":
        raise _refused("channel_binding", "prefer or disable", "require")
    if "@" in (url.host or ""):  # the end of a password, which messages would show as a host
        raise ConfigurationError(
            "settings-invalid",
            "The setting database_url has more than one @ before its host.",
            expected="postgresql://USER:PASSWORD@HOST/NAME",
            found="(not shown)",
            remedy="In a user's name or a password write %40 for @.",
        )
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise _refused("the port", "1 to 65535", str(url.port))
    arguments: dict[str, Any] = {}
    if wait := options.pop("connect_timeout", None):
        if not (wait.isascii() and wait.isdecimal()) or int(wait) > _WAIT_MAX_S:
            raise _refused("connect_timeout", f"whole seconds, at most {_WAIT_MAX_S}", wait)
        if int(wait) > 0:  # 0: libpq's word for no limit
            arguments["timeout"] = float(wait)
    for name, value in (
        ("host", url.host),
        ("port", url.port),
        ("user", url.username),
        ("password", url.password),
        ("database", url.database),
    ):
        if value is not None:
            arguments[name] = value
    if options:
        arguments["dsn"] = f"postgresql://?{urlencode(options)}"
    return arguments


def _refused(option: str, expected: str, found: str) -> ConfigurationError:
    return ConfigurationError(
        "settings-invalid",
        f"The setting database_url has an option that the driver cannot honour: {option}.",
        expected=expected,
        found=found[:_SHOWN],
        remedy="Leave it out; sslmode=verify-full says whom the service talks to.",
    )
