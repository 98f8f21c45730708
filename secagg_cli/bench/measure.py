"""Times of a piece of work and of the raw operation that bounds it, taken in turns.

The best of each counts, so that other load on the machine disturbs both alike.
"""

from __future__ import annotations

import secrets
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_RAW_CHUNK_BYTES = 128 * 1024  # stays in cache, as the masking does
_RAW_SAMPLE_BYTES = 256 * 1024 * 1024  # raw bytes measured at a time, then scaled


def key_stream_s(total_bytes: int, pool: ThreadPoolExecutor | None, threads: int) -> float:
    """Seconds for ``total_bytes`` of AES-256-CTR: a sample, scaled."""
    sample = min(total_bytes, _RAW_SAMPLE_BYTES)
    start = time.perf_counter()
    if pool is None:
        _key_stream(sample)
    else:
        for job in [pool.submit(_key_stream, sample // threads) for _ in range(threads)]:
            job.result()
    return (time.perf_counter() - start) * total_bytes / sample


def _key_stream(size_bytes: int) -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES256(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(_RAW_CHUNK_BYTES)
    buffer = bytearray(_RAW_CHUNK_BYTES)
    for _ in range(max(1, size_bytes // _RAW_CHUNK_BYTES)):
        encryptor.update_into(zeros, buffer)


def best(work: Callable[[], None], limit: Callable[[], float], repeat: int) -> tuple[float, float]:
    """Best seconds of the work and of its limit, measured in turns."""
    work_s, limit_s = [], []
    for _ in range(repeat):
        limit_s.append(limit())
        start = time.perf_counter()
        work()
        work_s.append(time.perf_counter() - start)
    return min(work_s), min(limit_s)


def peak_bytes(work: Callable[[], None]) -> int:
    """What Python and numpy allocate during the work, at the peak, above what was there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
