"""What a device asks of the aggregator: offers, models, mail, and resumable transfers.

Nothing here decides what is true; :mod:`client_sdk.network.http` says how requests fail and are
repeated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from client_sdk.errors import TransportError, Unreached
from client_sdk.network.connections import Meter, foreign
from client_sdk.network.deltas import DeltaDownload
from client_sdk.network.http import (
    PROBLEM_BYTES_MAX,
    QUOTED_BYTES,
    Http,
    TransportSettings,
    network_of,
    read_capped,
)
from client_sdk.network.part_files import append, size_of, truncate
from client_sdk.network.server_time import ServerTime
from client_sdk.network.uploads import ChunkPace, VectorUpload, unnoted
from dp.tlog.tiles import resource_bytes_max
from secagg.http_api import AdvertAccepted, Mail, Offer
from secagg.limits import MANIFEST_BYTES_MAX, REVOCATION_BYTES_MAX
from secagg.messages import FRAME_BYTES_MAX

_OFFER_BYTES_MAX = 2 * MANIFEST_BYTES_MAX  # base64
_MAIL_BYTES_MAX = 2 * FRAME_BYTES_MAX + 65_536
_POLL_PART = 0.75  # of a request's limit; the rest is for its way
_STUCK_MAX = 8  # transfers in a row that begin anew


class Transport:
    """One aggregator, as one device sees it. Use as an async context manager."""

    def __init__(
        self,
        server: str,
        issue_token: Callable[[int], str],
        settings: TransportSettings | None = None,
        time: ServerTime | None = None,
        meter: Meter | None = None,
    ) -> None:
        """As :class:`client_sdk.network.http.Http`; ``meter`` counts the bytes that pass."""
        self.settings = settings or TransportSettings()
        self._network = network_of(self.settings, meter)
        self._http = Http(server, issue_token, self._network, self.settings, time)
        self._pace = ChunkPace(self.settings)

    async def __aenter__(self) -> Transport:
        """Raises: NetworkError: as :class:`client_sdk.network.connections.Network`."""
        await self._network.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._network.__aexit__(kind, error, trace)

    async def offer(self, task: str, after_version: int | None, wait_s: float) -> Offer:
        """The current offer; with ``after_version`` the server waits for a newer model."""
        query = {} if after_version is None else {"after_version": str(after_version)}
        wait_s = min(wait_s, _POLL_PART * self._http.most_s)
        try:
            return await self._http.json(
                "GET",
                f"/v1/tasks/{quote(task, safe='')}/offer",
                Offer,
                _OFFER_BYTES_MAX,
                query={**query, "wait_s": f"{wait_s:g}"},
                wait_s=wait_s,
            )
        except TransportError as error:
            if error.own_status == 404:
                error.remedy = f"Check the name {task!r}, and that the bundle is of its aggregator."
            raise

    async def revocations(self, digest: bytes) -> bytes:
        """A partner's revocation list; the caller verifies it."""

        async def get() -> bytes:
            async with self._http.request("GET", f"/v1/revocations/{digest.hex()}") as response:
                return await read_capped(response, REVOCATION_BYTES_MAX)

        return await self._http.retry(get)

    async def post_advert(self, advert: bytes) -> AdvertAccepted:
        return await self._http.json(
            "POST", "/v1/adverts", AdvertAccepted, PROBLEM_BYTES_MAX, advert
        )

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """No request that is made inside takes longer, with its wait at the server.

        What nobody answers is so repeated while there is time. A poll waits three quarters of it.
        """
        before = self._http.most_s
        self._http.most_s = seconds
        try:
            yield
        finally:
            self._http.most_s = before

    async def messages(self, session: str, after: int, wait_s: float) -> tuple[bytes, ...]:
        """Messages with sequence numbers from ``after`` + 1; empty if none came in time."""
        wait_s = min(wait_s, _POLL_PART * self._http.most_s)
        mail = await self._http.json(
            "GET",
            f"/v1/sessions/{session}/messages",
            Mail,
            _MAIL_BYTES_MAX,
            query={"after": str(after), "wait_s": f"{wait_s:g}"},
            wait_s=wait_s,
        )
        return mail.messages

    async def post_message(self, session: str, message: bytes) -> None:
        await self._say("POST", f"/v1/sessions/{session}/messages", message)

    async def withdraw(self, session: str) -> None:
        """Leave a session before its masking set is fixed.

        Raises:
            TransportError: ``withdraw-late``: it is; or as every request.
        """
        await self._say("DELETE", f"/v1/sessions/{session}")

    async def _say(self, method: str, path: str, message: bytes | None = None) -> None:
        async def say() -> None:
            async with self._http.request(method, path, message) as response:
                if response.status != 204:  # the aggregator takes it without a word
                    raise foreign(response, await response.content.read(QUOTED_BYTES))

        await self._http.retry(say)

    async def upload(
        self, session: str, payload: bytes, note: Callable[[int, int], None] = unnoted
    ) -> None:
        """Upload a vector from where the server has it, until its last byte is acknowledged.

        ``note`` hears how many bytes are acknowledged, and of how many.

        Raises:
            TransportError: also ``upload-conflict`` if the server's offsets make no sense for as
                long as the patience lasts.
        """
        path = f"/v1/sessions/{session}/vector"
        await VectorUpload(self._http, path, payload, self._pace, note).run()

    async def download_model(
        self,
        digest: bytes,
        size_bytes: int,
        part: Path,
        note: Callable[[int, int], None] = unnoted,
    ) -> None:
        """Append to ``part`` until it has ``size_bytes``; resumes a broken transfer by range.

        The caller checks the digest. ``note`` hears how many bytes are there, and of how many.
        """
        stuck = 0
        while (have := size_of(part)) < size_bytes:
            if stuck > _STUCK_MAX:
                raise TransportError(
                    "model-size",
                    "The model's transfer does not advance.",
                    expected=size_bytes,
                    found=have,
                )
            resumed = await self._http.retry(
                lambda: self._fetch_range(digest, have, size_bytes, part, note)
            )
            stuck = 0 if resumed else stuck + 1
        if have > size_bytes:
            os.unlink(part)
            raise TransportError(
                "model-size", "The model is larger than offered.", expected=size_bytes, found=have
            )

    async def download_delta(
        self,
        model: bytes,
        held: bytes,
        size_max: int,
        part: Path | None,
        folder: Path,
        note: Callable[[int, int], None] = unnoted,
    ) -> Path:
        """As :class:`client_sdk.network.deltas.DeltaDownload`; ``note`` as for a model."""
        most_s = self.settings.transfer_s
        return await DeltaDownload(self._http, model, held, size_max, most_s, note).run(
            part, folder
        )

    async def ledger(self, path: str) -> bytes | None:
        """A file of the public ledger (``checkpoint`` or ``tile/...``); None if it is not there."""

        async def get() -> bytes | None:
            try:
                async with self._http.request("GET", f"/ledger/{path}", auth=False) as response:
                    return await read_capped(response, resource_bytes_max(path))
            except TransportError as error:
                gone = error.status if path != "checkpoint" else error.own_status
                if gone == 404:  # tiles may be a web server's, with a page of its own
                    return None
                raise

        return await self._http.retry(get)

    async def _fetch_range(
        self,
        digest: bytes,
        have: int,
        size_bytes: int,
        part: Path,
        note: Callable[[int, int], None],
    ) -> bool:
        """Append what comes: whether it went on where the part ends. An error is raised only if
        nothing came."""
        headers = {"Range": f"bytes={have}-"} if have else {}
        grown, resumed = 0, False
        try:
            async with self._http.request(
                "GET",
                f"/v1/models/{digest.hex()}",
                headers=headers,
                total_s=self.settings.transfer_s,
            ) as response:
                resumed = response.status == 206
                if not resumed:
                    truncate(part)
                async for piece in response.content.iter_chunked(1 << 18):
                    append(part, piece)
                    grown += len(piece)
                    note((have if resumed else 0) + grown, size_bytes)
                    if grown > size_bytes:
                        break
        except TransportError as error:
            if error.own_status == 416:
                truncate(part)
            if not grown:
                raise
        if not grown:
            raise Unreached("unreachable", "The model's transfer was empty.")
        return resumed
