"""A ledger's files, from a folder or over HTTP. Who serves them is not trusted, so all has limits.

A file has a size by its kind, and nothing is read beyond it. Over HTTP it comes uncoded, from the
origin that was named, whatever a redirect says, and in time. A file that cannot be had says
nothing about the ledger: that is a ``ReadError``, never a finding of the audit.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from dp.errors import LedgerError, ReadError
from dp.ledger.forms import unbase64
from dp.tlog.notes import ED25519, parse_verifier
from dp.tlog.tiles import resource_bytes_max
from dp.tlog.witness import parse_witness
from secagg.files.text import TextFile
from secagg_cli.network import transport_settings
from secagg_cli.output import UnusableArgument

if TYPE_CHECKING:
    import aiohttp

    from client_sdk.network.connections import Network

_NAMES = ("checkpoint", "tile")  # of which a ledger has at least one
Reader = Callable[[str], bytes | None]
FILE_S = 60.0
"""Seconds that one file may take."""
ALL_S = 300.0
"""Seconds that all files of one ledger may take to come: at 1 MB/s some 200,000 records."""
_REDIRECTS_MAX = 4
_PASSING = ("answer-foreign", "http-429", "http-502", "http-503", "http-504")
_WAITS_S = (0.2, 0.8)  # before what may pass is asked for again
_QUOTED_BYTES = 256
_KEY = TextFile("file of a verifier key", UnusableArgument, "verifier-key", "verifier-key", 4_096)
_UNREAD_MAX = 1 << 16  # files of a folder that are looked at for who was not read
_SHOWN = 200
_COPY = "Copy the ledger's folder and give the copy."


def read_key(key: str) -> str:
    """The verifier key itself, or the content of a file that holds it.

    Raises:
        UnusableArgument: ``key-missing``: neither; ``verifier-key``: a file that holds none.
    """
    if key and os.path.lexists(key):
        return _KEY.read(Path(key)).strip()
    if key.count("+") < 2:  # name+hash+base64
        raise UnusableArgument(
            "key-missing",
            f"{key} is neither a file nor a verifier key.",
            remedy="A verifier key reads name+hash+base64; or give the file that holds it.",
        )
    return key.strip()


def witness_keys(witnesses: Sequence[str]) -> list[str]:
    """Verifier keys of witnesses, each given itself or by a file.

    Raises:
        UnusableArgument: as :func:`read_key`, or ``verifier-key`` for another kind of key.
    """
    keys = []
    for witness in witnesses:
        key = read_key(witness)
        try:
            parse_witness(key)
        except LedgerError as error:
            raise key_refused("--witness", witness, error) from error
        keys.append(key)
    return keys


def key_refused(option: str, given: str, error: LedgerError) -> UnusableArgument:
    """What is said of a key that an option was given, and that is not of its kind."""
    key = read_key(given)
    remedy = error.remedy
    for parse, kind in ((parse_verifier, "a ledger's"), (parse_witness, "a witness's")):
        try:
            parse(key)
        except LedgerError:
            continue
        other = "--key" if parse is parse_verifier else "--witness"
        remedy = f"It is {kind} key, which {other} takes."
    return UnusableArgument(
        error.reason, f"{option} {given[:_SHOWN]}: {error.message}", remedy=remedy
    )


def has_form_of_key(key: str) -> bool:
    """Whether a text reads name+hash+base64 of a ledger's key.

    Whether it fits its hash the audit says.
    """
    if any(each.isspace() for each in key):
        return False
    name, _, rest = key.partition("+")
    hashed, _, encoded = rest.partition("+")
    try:
        found = unbase64(encoded)
        named = bool(name) and len(bytes.fromhex(hashed)) == 4
    except ValueError:
        return False
    return named and len(found) == 33 and found[:1] == ED25519


def read_checkpoint(file: Path) -> bytes:
    """An older checkpoint that somebody kept.

    Raises:
        UnusableArgument: ``checkpoint-unreadable``.
    """
    most = resource_bytes_max("checkpoint")
    try:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise UnusableArgument("checkpoint-unreadable", f"An older checkpoint: {error}") from error
    if len(content) > most:
        raise UnusableArgument("checkpoint-unreadable", f"{file} is too large for a checkpoint.")
    return content


def ledger_reader(ledger: str) -> Reader:
    """Reads a ledger's files by their path in the tlog-tiles layout; None where there is none.

    Raises:
        UnusableArgument: ``ledger-missing`` or ``ledger-url``. The reader raises ``ReadError``
            where a file cannot be had, and ``LedgerError`` ``resource-too-large``.
    """
    scheme, separator, _ = ledger.partition("://")
    if not separator:
        return FolderReader(Path(ledger))
    if scheme.lower() not in ("http", "https"):
        raise _bad_url(ledger)
    return HttpReader(ledger)


def _bad_url(ledger: str) -> UnusableArgument:
    return UnusableArgument(
        "ledger-url",
        f"{ledger} is not the address of a ledger.",
        remedy="Give an http or https URL without query and fragment, or a folder.",
    )


class FolderReader:
    """Files of a folder; remembers which were read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: set[str] = set()
        if not folder.is_dir() or not any((folder / name).exists() for name in _NAMES):
            raise UnusableArgument(
                "ledger-missing",
                f"{folder} is not a folder that holds a ledger.",
                remedy="Give the folder that holds `checkpoint`, or a URL.",
            )

    def __call__(self, path: str) -> bytes | None:
        file, most = self._folder / path, resource_bytes_max(path)
        try:
            if not _is_file(file):
                return None
            with file.open("rb") as opened:
                content = opened.read(most + 1)
        except OSError as error:
            raise ReadError("ledger-unreadable", f"{file} cannot be read: {error}") from error
        if len(content) > most:
            raise _too_large(str(file), most)
        self._read.add(path)
        return content

    def unread(self) -> list[str]:
        """Files of the folder that were neither read nor are the beginning of one that was, sorted;
        of a vast folder the first ones. A narrower form of a tile is the beginning of a wider one.
        """
        found = []
        for folder, _, names in os.walk(self._folder):
            at = Path(folder).relative_to(self._folder)
            found += [path for name in names if (path := (at / name).as_posix()) not in self._read]
            if len(found) > _UNREAD_MAX:
                break
        return sorted(path for path in found if not self._begins(path))

    def _begins(self, path: str) -> bool:
        tile, partial, _ = path.rpartition(".p/")
        wider = [read for read in self._read if read == tile or read.startswith(f"{tile}.p/")]
        if not partial or not wider:
            return False
        most = resource_bytes_max(path)
        try:
            with (
                (self._folder / path).open("rb") as narrow,
                (self._folder / wider[0]).open("rb") as wide,
            ):
                beginning = narrow.read(most + 1)
                return 0 < len(beginning) <= most and wide.read(len(beginning)) == beginning
        except OSError:
            return False


class HttpReader:
    """Files below a URL. ``clock``: seconds that only grow."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            parts = urlsplit(url)
            usable = bool(parts.hostname) and not parts.query and not parts.fragment
            self._origin = _origin(url)
        except ValueError:
            usable = False
        if not usable:
            raise _bad_url(url)
        self._base = url.rstrip("/")
        self._settings = transport_settings()
        self._left_s = ALL_S
        self._clock = clock

    def __call__(self, path: str) -> bytes | None:
        started = self._clock()
        try:
            found = asyncio.run(self._get(path))
        finally:
            self._left_s -= self._clock() - started
        if found is None and path == "checkpoint" and not self._base.endswith("/ledger"):
            raise UnusableArgument(
                "ledger-missing",
                f"There is no ledger at {self._base}.",
                remedy=f"An aggregator serves its ledger at {self._base}/ledger.",
            )
        return found

    async def _get(self, path: str) -> bytes | None:
        """Within the deadline; what may pass is asked for again."""
        from client_sdk.network.http import network_of

        limit_s = min(FILE_S, self._left_s)
        try:
            async with asyncio.timeout(max(0.0, limit_s)), network_of(self._settings) as network:
                for wait_s in _WAITS_S:
                    try:
                        return await self._follow(network, path)
                    except ReadError as error:
                        if error.reason not in _PASSING:
                            raise
                    await asyncio.sleep(wait_s)
                return await self._follow(network, path)
        except TimeoutError as error:
            raise ReadError(
                "ledger-deadline",
                f"{self._base}/{path} did not come in time.",
                expected=f"a file in {FILE_S:g} s, all in {ALL_S:g} s",
                remedy=f"Try again, or do without the server: {_COPY}",
            ) from error

    async def _follow(self, network: Network, path: str) -> bytes | None:
        from client_sdk.errors import Unreached

        url = f"{self._base}/{path}"
        try:
            for _ in range(_REDIRECTS_MAX + 1):
                async with network.ask("GET", url) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return await self._body(response, path)
                    url = self._followed(url, response.headers.get("Location", ""))
        except Unreached as error:
            reason = "server-unreachable" if error.reason == "unreachable" else error.reason
            raise ReadError(reason, error.message, remedy=error.remedy) from error
        raise ReadError("ledger-redirected", f"{url} redirects again and again.")

    def _followed(self, url: str, location: str) -> str:
        """Where a redirect leads, within the origin."""
        target = urljoin(url, location)
        if not location or _origin(target) != self._origin:
            raise ReadError(
                "ledger-redirected",
                f"{url} sends the reader to another origin, {target[:200]}",
                remedy="If that is where the ledger lies, give that address yourself.",
            )
        return target

    async def _body(self, response: aiohttp.ClientResponse, path: str) -> bytes | None:
        if response.status in (404, 410):
            return None
        if response.status != 200:
            raise ReadError(
                f"http-{response.status}",
                f"{response.url} answered with status {response.status}.",
                remedy="The ledger's files are public and come with status 200. Try again later.",
            )
        from client_sdk.network.connections import foreign, is_page

        if is_page(response):
            raise foreign(response, await response.content.read(_QUOTED_BYTES))
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise ReadError(
                "ledger-encoded",
                f"{response.url} answered in the coding {coding[:40]!r}, which was not asked for.",
                remedy=f"A proxy may do so. {_COPY}",
            )
        most, body = resource_bytes_max(path), bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > most:
                raise _too_large(str(response.url), most)
        return bytes(body)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(scheme)


def _too_large(name: str, most: int) -> LedgerError:
    return LedgerError(
        "resource-too-large",
        f"{name} is larger than such a file of a ledger can be.",
        expected=f"<= {most} bytes",
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise
