"""How large the chunks of an upload are and how long each may take; a vector's way up in them.

What is lost on the way has to be sent again, so on a network that loses requests a chunk is a small
part of its vector; on one that has lost none for a while a vector takes a few. What has arrived is
never sent again on purpose: whenever a chunk's answer did not come, the aggregator is asked how far
it is before another byte of the vector is sent.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from client_sdk.errors import TransportError
from client_sdk.network.http import (
    PROBLEM_BYTES_MAX,
    Http,
    TransportSettings,
    is_transient,
    read_json,
)
from secagg.http_api import UploadState

CONFLICT = "upload-conflict"
_DAMAGED = "vector-digest"  # and what came is dropped
CHUNK_BYTES_FIRST = 1 << 14
_CHUNK_BYTES_MIN = 1 << 12
_PARTS = 16  # of a vector; a chunk is such a part of a large one where the network loses requests
_GROWTH = 4
_AIM = 1 / 8  # of a deadline that a chunk is expected to take
_LEAST = 1 / 6  # of request_s
_PAUSE_S = (0.1, 1.0)  # least and most, of twice an answer's time


def unnoted(done: int, total: int) -> None:
    """Where nobody asks how far a transfer is."""


def part_of(vector_bytes: int) -> int:
    """Bytes of a vector that may have to be sent again without harm."""
    return max(CHUNK_BYTES_FIRST, vector_bytes // _PARTS)


class ChunkPace:
    """Sizes in bytes, and deadlines, that fit the rate at which a network took chunks before."""

    def __init__(self, settings: TransportSettings) -> None:
        self._most = settings.chunk_bytes
        self._most_s = min(settings.request_s, settings.transfer_s)
        self._size = CHUNK_BYTES_FIRST
        self._expected_s = self._most_s  # of a chunk of that size

    def size(self, vector_bytes: int, *, steady: bool) -> int:
        """Of the next chunk of such a vector. ``steady``: the network loses nothing."""
        size = min(self._size, self._most)
        return size if steady else min(size, part_of(vector_bytes))

    def within_s(self) -> float:
        """Deadline of the next chunk: a network that stalls is left soon."""
        return min(self._most_s, max(_LEAST * self._most_s, self._expected_s / _AIM))

    def took(self, size: int, seconds: float) -> None:
        """A chunk was taken, that was no shorter than it might be."""
        rate = size / max(seconds, 1e-3)
        self._size = max(_CHUNK_BYTES_MIN, min(_GROWTH * size, int(rate * _AIM * self._most_s)))
        self._expected_s = self._size / rate

    def broke(self) -> None:
        """A chunk's answer did not come."""
        self._size = max(_CHUNK_BYTES_MIN, self._size // _GROWTH)
        self._expected_s = min(
            self._most_s, 2 * max(self._expected_s, _LEAST * _AIM * self._most_s)
        )


class VectorUpload:
    """One vector on its way to one session."""

    def __init__(
        self,
        http: Http,
        path: str,
        payload: bytes,
        pace: ChunkPace,
        note: Callable[[int, int], None] = unnoted,
    ) -> None:
        """``note`` hears how many bytes are acknowledged, and of how many."""
        self._http = http
        self._path = path
        self._payload = payload
        self._pace = pace
        self._note = note
        self._answer_s = 0.0  # of the last question how far the server is
        self._broken = False
        self._sent_again = False  # from its beginning

    async def run(self) -> None:
        """Send from where the aggregator has it, until the last byte is acknowledged.

        Raises:
            TransportError: also ``upload-conflict`` if the server's offsets make no sense for as
                long as the patience lasts.
        """
        settings, most = self._http.settings, len(self._payload)
        state = await self._received()
        advanced_s, wait_s = time.monotonic(), settings.backoff_first_s
        while not state.complete:
            offset = state.received_bytes
            self._note(offset, most)
            if 0 <= offset <= most:
                state = await self._http.retry(lambda: self._put(offset))  # noqa: B023
            else:
                state = await self._received()
            if state.complete or offset < state.received_bytes <= most:
                advanced_s, wait_s = time.monotonic(), settings.backoff_first_s
                continue
            if time.monotonic() - advanced_s > settings.patience_s:
                raise TransportError(
                    CONFLICT,
                    "The server's upload offset does not fit the vector.",
                    expected=f"0..{most}, rising",
                    found=state.received_bytes,
                    remedy="It is sent again while the cohort lasts. If it stays so, tell the "
                    "operator: a replica or its store answers wrongly.",
                )
            await asyncio.sleep(wait_s + settings.jitter_s * secrets.SystemRandom().random())
            wait_s = min(2 * wait_s, settings.backoff_max_s)

    async def _received(self) -> UploadState:
        asked_s = time.monotonic()
        state = await self._http.json("GET", self._path, UploadState, PROBLEM_BYTES_MAX)
        self._answer_s = time.monotonic() - asked_s
        return state

    def _pause_s(self, size: int) -> float:
        """After the first bytes of a chunk that is large, or comes after a broken one: something
        between that refuses at once is heard before the rest is sent."""
        if not self._broken and size <= part_of(len(self._payload)):
            return 0.0
        return min(max(_PAUSE_S[0], 2 * self._answer_s), _PAUSE_S[1])

    async def _put(self, offset: int) -> UploadState:
        """One chunk; if it broke or the offset was stale, the server's own offset instead."""
        size = self._pace.size(len(self._payload), steady=self._http.steady and not self._broken)
        chunk = self._payload[offset : offset + size]
        pause_s = self._pause_s(len(chunk))
        last = offset + len(chunk) == len(self._payload)  # the server then adds it to the sum
        begun_s = time.monotonic()
        try:
            async with self._http.request(
                "PUT",
                self._path,
                chunk,
                query={"offset": str(offset)},
                total_s=self._http.settings.transfer_s if last else self._pace.within_s(),
                pause_s=pause_s,
            ) as response:
                state = await read_json(response, UploadState, PROBLEM_BYTES_MAX)
        except TransportError as error:
            if error.own_status == 400 and error.reason == _DAMAGED and not self._sent_again:
                self._sent_again = True  # on its way or in the store, which a crash may damage
                return await self._received()
            if error.own_status != 409 and not is_transient(error):
                raise
            self._pace.broke()
            self._broken = True
            state = await self._received()
            if state.received_bytes <= offset and not state.complete and error.own_status != 409:
                raise
            return state
        if len(chunk) == size:
            self._pace.took(size, time.monotonic() - begun_s - pause_s)
        return state
