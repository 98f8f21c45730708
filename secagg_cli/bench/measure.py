"""Times of a piece of work and of the raw operation that bounds it, taken in turns.

The best of each counts, so that other load on the machine disturbs both alike. CPU time (of all
threads) is taken beside wall time: it hardly depends on what else runs.
"""

from __future__ import annotations

import secrets
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_RAW_CHUNK_BYTES = 128 * 1024  # stays in cache, as the masking does
_RAW_SAMPLE_BYTES = 2 << 30  # raw bytes measured at a time, then scaled


@dataclass(frozen=True)
class Span:
    """Seconds on the clock, and of all processors."""

    wall_s: float
    cpu_s: float

    def times(self, factor: float) -> Span:
        return Span(self.wall_s * factor, self.cpu_s * factor)

    def least(self, other: Span) -> Span:
        return Span(min(self.wall_s, other.wall_s), min(self.cpu_s, other.cpu_s))


def timed(work: Callable[[], object]) -> Span:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Span(time.perf_counter() - wall, time.process_time() - cpu)


def key_stream(total_bytes: int, pool: ThreadPoolExecutor | None, threads: int) -> Span:
    """``total_bytes`` of AES-256-CTR: a sample, scaled."""
    sample = min(total_bytes, _RAW_SAMPLE_BYTES)

    def run() -> None:
        if pool is None:
            _key_stream(sample)
            return
        for job in [pool.submit(_key_stream, sample // threads) for _ in range(threads)]:
            job.result()

    return timed(run).times(total_bytes / sample)


def _key_stream(size_bytes: int) -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES256(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(_RAW_CHUNK_BYTES)
    buffer = bytearray(_RAW_CHUNK_BYTES)
    for _ in range(max(1, size_bytes // _RAW_CHUNK_BYTES)):
        encryptor.update_into(zeros, buffer)


def best(work: Callable[[], object], limit: Callable[[], Span], repeat: int) -> tuple[Span, Span]:
    """The work's least times and its limit's, measured in turns."""
    least_limit, least_work = limit(), timed(work)
    for _ in range(repeat - 1):
        least_limit = least_limit.least(limit())
        least_work = least_work.least(timed(work))
    return least_work, least_limit


def peak_bytes(work: Callable[[], object]) -> int:
    """What Python and numpy allocate during the work, at the peak, above what was there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
