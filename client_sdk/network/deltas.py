"""A model's delta on its way to this device: resumed by range while it is the same one.

A part has the delta's digest as its name. It is what ``If-Range`` asks for, so that parts of two
deltas, of two replicas for instance, are never put together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from client_sdk.errors import TransportError, Unreached
from client_sdk.network.http import Http
from client_sdk.network.part_files import append, size_of, truncate
from client_sdk.state.models import demand_plain, remove_model
from secagg.limits import DIGEST_BYTES

_TAG = re.compile(r'"([0-9a-f]{64})"')
_RANGE = re.compile(r"bytes ([0-9]{1,16})-[0-9]{1,16}/([0-9]{1,16})")
_PIECE_BYTES = 1 << 18
_STUCK_MAX = 8  # answers in a row that begin anew
_HAS_NONE = (404, 405)  # also of an older aggregator, or of a proxy that knows no such path
NO_DELTA = "no-delta"


@dataclass(frozen=True)
class _Begun:
    """A delta's part, how long it will be, and whether this answer went on with it."""

    part: Path
    size_bytes: int
    resumed: bool


class DeltaDownload:
    """One delta."""

    def __init__(
        self,
        http: Http,
        model: bytes,
        held: bytes,
        size_max: int,
        total_s: float,
        note: Callable[[int, int], None],
    ) -> None:
        """
        Args:
            model, held: digests; ``held`` is empty where no model is held.
            size_max: bytes beyond which it is refused before the first is read.
            total_s: deadline of one answer.
            note: hears how many bytes are there, and of how many.
        """
        self._http, self._note = http, note
        self._path = f"/v1/deltas/{model.hex()}/{held.hex() or '0' * (2 * DIGEST_BYTES)}"
        self._size_max, self._total_s = size_max, total_s

    async def run(self, part: Path | None, folder: Path) -> Path:
        """Its file, of the digest that is its name.

        Args:
            part: what came of one in an earlier process.
            folder: where a new part lies, named by digest and ``.part``.

        Raises:
            TransportError: ``no-delta``, ``delta-malformed``, ``delta-digest``.
            StateError: ``disk``.
        """
        if part is not None and is_whole(part):
            return part
        stuck = 0
        while stuck <= _STUCK_MAX:
            begun = await self._http.retry(lambda: self._answer(part, folder))  # noqa: B023
            have = size_of(begun.part)
            if have >= begun.size_bytes:
                if is_whole(begun.part):
                    return begun.part
                remove_model(begun.part)
                raise TransportError(
                    "delta-digest",
                    "The delta of the model is not what its digest says.",
                    expected=begun.part.stem,
                )
            stuck = 0 if begun.resumed else stuck + 1
            part = begun.part
        raise TransportError("delta-malformed", "The transfer of the delta does not advance.")

    async def _answer(self, part: Path | None, folder: Path) -> _Begun:
        """Append what comes; an error is raised only if nothing came."""
        have = 0 if part is None else size_of(part)
        headers = {}
        if part is not None and have:
            headers = {"Range": f"bytes={have}-", "If-Range": f'"{part.stem}"'}
        grown, begun = 0, None
        try:
            async with self._http.request(
                "GET", self._path, headers=headers, total_s=self._total_s
            ) as response:
                begun = self._begun(response, part, folder, have)
                before = size_of(begun.part)
                left = begun.size_bytes - before
                async for piece in response.content.iter_chunked(_PIECE_BYTES):
                    append(begun.part, piece[: left - grown])
                    grown += len(piece)
                    self._note(before + min(grown, left), begun.size_bytes)
                    if grown >= left:
                        break
        except TransportError as error:
            if begun is None and error.status in _HAS_NONE:
                raise TransportError(NO_DELTA, error.message) from error
            if begun is None or not grown:
                raise
        if not grown:
            raise Unreached("unreachable", "The delta's transfer was empty.")
        return begun

    def _begun(
        self, response: aiohttp.ClientResponse, part: Path | None, folder: Path, have: int
    ) -> _Begun:
        """Which delta this is, and that the answer begins where its part ends.

        Raises:
            TransportError: ``delta-malformed``: it says no tag or length, or is too long.
        """
        tag = _TAG.fullmatch(response.headers.get("ETag", ""))
        ranged = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        size = response.content_length or 0
        if response.status == 206 and ranged is not None:
            size = int(ranged[2])
        if tag is None or not 0 < size <= self._size_max:
            raise TransportError(
                "delta-malformed",
                "The answer is not the delta of a model.",
                status=response.status,
                expected=f"a digest as its tag, at most {self._size_max} bytes",
                found=size,
            )
        new = folder / f"{tag[1]}.part"
        if response.status != 206:
            if part is not None and part != new:
                remove_model(part)
            demand_plain(new)
            truncate(new)
        elif new != part or ranged is None or int(ranged[1]) != have:
            raise TransportError("delta-malformed", "The answer is another range.")
        return _Begun(new, size, resumed=response.status == 206)


def is_whole(part: Path) -> bool:
    """Whether a file has the digest that is its name."""
    if not part.is_file():
        return False
    with part.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == part.stem
