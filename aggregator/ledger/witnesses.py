"""Asking the ledger's witnesses for their cosignatures (c2sp.org/tlog-witness, as a client)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import aiohttp

from aggregator.logs import get_logger
from dp.errors import LedgerError
from dp.tlog.merkle import SubtreeReader, consistency_proof
from dp.tlog.notes import Verifier, split_note
from dp.tlog.witness import (
    AddCheckpoint,
    add_cosignatures,
    cosigned_at,
    encode_request,
    parse_witness,
)
from secagg.errors import ConfigurationError
from secagg.proxies import proxy_for

_ANSWER_BYTES_MAX = 16 << 10
_ERROR_CHARACTERS_MAX = 300
_TRIES = 2  # the first learns what the witness remembers

_SILENT_S = 30.0  # from then on a witness is said to be silent, not only to have failed

_log = get_logger("witnesses")


class WitnessNow(NamedTuple):
    """``lag``: records of the ledger that it has not cosigned. ``answered_at``: Unix seconds by its
    clock, of its last cosignature; None before the first."""

    name: str
    lag: int
    answered_at: int | None


class Witnesses:
    """Witnesses of one log, by verifier key and URL. What one of them fails to do is logged."""

    def __init__(
        self,
        urls: Mapping[str, str],
        timeout_s: float,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls = {parse_witness(key): url.rstrip("/") for key, url in urls.items()}
        self._timeout_s = timeout_s
        self._sizes: dict[Verifier, int] = {}  # what each of them cosigned last
        self._seen: dict[Verifier, tuple[int, int]] = {}  # last cosignature: of what size, and when
        self._session: aiohttp.ClientSession | None = None
        self._steady = steady
        self._silent_since: dict[Verifier, float] = {}  # seconds of a clock that is never set

    def saw(self, note: bytes, size: int) -> None:
        """Remember who has cosigned the checkpoint of ``size`` leaves, and when."""
        for witness, at in cosigned_at(note, self._urls).items():
            self._seen[witness] = (size, at)

    def standing(self, size: int) -> list[WitnessNow]:
        """Of each witness, for a ledger of ``size`` leaves."""
        now = []
        for witness in sorted(self._urls):
            seen, at = self._seen.get(witness, (0, None))
            now.append(WitnessNow(witness.name, max(0, size - seen), at))
        return now

    def lacking(self, note: bytes) -> set[Verifier]:
        """Witnesses that have not cosigned the note."""
        return set(self._urls) - set(cosigned_at(note, self._urls))

    def carry_over(self, before: bytes, note: bytes) -> bytes:
        """The note with the cosignatures that an earlier copy of the same checkpoint carries."""
        try:
            if before and split_note(before)[0] == split_note(note)[0]:
                rows = before.decode().rpartition("\n\n")[2]
                return add_cosignatures(note, rows, self._urls)
        except LedgerError:
            _log.warning("checkpoint-file-unreadable")
        return note

    async def cosign(self, note: bytes, size: int, subtree: SubtreeReader) -> bytes:
        """The note with every cosignature to be had within the time limit.

        Args:
            note: the signed checkpoint of ``size`` leaves.
            subtree: hashes of a tree of at least ``size`` leaves.
        """
        lacking = sorted(self.lacking(note))
        if not lacking:
            return note
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, headers={"Accept-Encoding": "identity"}
            )
        answers = await asyncio.gather(
            *(self._ask(self._session, witness, note, size, subtree) for witness in lacking)
        )
        for witness, answer in zip(lacking, answers, strict=True):
            try:
                note = add_cosignatures(note, answer, (witness,)) if answer else note
            except LedgerError as error:
                _log.warning("witness-answer", witness=witness.name, reason=error.reason)
        self._tell_silent(lacking, self.lacking(note))
        return note

    def _tell_silent(self, asked: Collection[Verifier], silent: Collection[Verifier]) -> None:
        now = self._steady()
        for witness in asked:
            if witness not in silent:
                since = self._silent_since.pop(witness, None)
                if since is not None:
                    _log.info("witness-back", witness=witness.name, silent_s=round(now - since))
                continue
            since = self._silent_since.setdefault(witness, now)
            if now - since >= _SILENT_S:
                _log.error(
                    "witness-silent",
                    witness=witness.name,
                    silent_s=round(now - since),
                    remedy="Devices that demand this witness wait. Start it (secagg witness serve) "
                    "or reach it at its URL, or take it out of the setting witnesses.",
                )

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        witness: Verifier,
        note: bytes,
        size: int,
        subtree: SubtreeReader,
    ) -> str:
        for _ in range(_TRIES):
            old = self._sizes.get(witness, 0)
            if old > size:
                # Another replica was faster, or this log was restored from a backup.
                _log.error("witness-ahead", witness=witness.name, witnessed=old, size=size)
                return ""
            proof = tuple(consistency_proof(subtree, old, size))
            body = encode_request(AddCheckpoint(old, proof, note))
            url, proxy = f"{self._urls[witness]}/add-checkpoint", None
            try:
                proxy = proxy_for(url, os.environ)
                credentials = {} if proxy is None else proxy.headers
                tunnelled = url.startswith("https:")
                async with session.post(
                    url,
                    data=body,
                    allow_redirects=False,
                    proxy=None if proxy is None else proxy.url,
                    proxy_headers=credentials if proxy is not None and tunnelled else None,
                    headers=None if tunnelled else credentials,
                ) as response:
                    answer = (await _body(response)).decode()
                    status = response.status
            except ConfigurationError as error:
                _log.error("witness-proxy", witness=witness.name, reason=error.reason)
                return ""
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                # Not repr: of a proxy's refusal it would show the credentials.
                said = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS_MAX]
                through = None if proxy is None else proxy.url
                _log.warning("witness-unreachable", witness=witness.name, error=said, proxy=through)
                return ""
            if status == 200:
                self._sizes[witness] = size
                return answer
            remembered = answer.removesuffix("\n")
            if status != 409 or not (remembered.isascii() and remembered.isdecimal()):
                break
            if len(remembered) > 18 or int(remembered) == old:
                break
            self._sizes[witness] = int(remembered)
        _log.error("witness-refused", witness=witness.name, status=status, size=size)
        return ""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer, in however many pieces it comes.

    Raises:
        ValueError: it is longer than any answer of a witness.
    """
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _ANSWER_BYTES_MAX:
            raise ValueError(f"the answer has more than {_ANSWER_BYTES_MAX} bytes")
    return bytes(body)
