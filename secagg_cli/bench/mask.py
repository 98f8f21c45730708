"""``secagg bench mask``: masking and unmasking beside the raw key stream, in one process.

The limit is the time that AES-256-CTR of the ``cryptography`` package alone needs for the bytes
that must be expanded, with as many threads as the measured work. Limit and work are measured in
turns and the best of each counts, so that other load on the machine disturbs both alike.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from secagg_cli.bench.measure import best, key_stream, peak_bytes
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    import numpy as np

    from secagg.masks import MaskTerm

_PIECE_MIN = 1 << 16  # coordinates
_PROBE_COORDINATES = 256  # coordinates whose unmasked sum is compared with the true one


def mask(
    clients: Annotated[int, number("Devices in the cohort.", low=2, high=10_000)],
    length: Annotated[int, number("Coordinates of each vector.", low=1, high=1 << 28)],
    bits: Annotated[int, number("Bits per coordinate.", low=8, high=62)],
    dropout: Annotated[float, number("Fraction that drops.", low=0, high=0.9)] = 0.1,
    degree: Annotated[
        int | None, number("Neighbours per device; default: all others.", low=1)
    ] = None,
    repeat: Annotated[int, number("Measure so often; the best counts.", low=1)] = 3,
    threads: Annotated[
        int | None, number("Threads of the unmasking; default: all cores.", low=1)
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """One device's masking and the server's unmasking, and what they take beyond the key stream."""
    with Output(format) as out:
        workload = _workload(clients, length, bits, dropout, degree)
        workers = threads or os.cpu_count() or 1
        out.say(
            f"{clients} devices, {length:,} coordinates of {bits} bits, {workload.degree} "
            f"neighbours, {len(workload.dropped)} dropped; unmasking on {workers} thread(s)"
        )
        result = _measure(workload, workers, repeat)
        out.table(
            None,
            ["", "seconds", "limit", "ratio", "in CPU time", "peak memory"],
            [
                [
                    "device masks",
                    f"{result['client_mask_s']:.3f}",
                    f"{result['client_limit_s']:.3f}",
                    f"{result['client_ratio']:.2f}",
                    f"{result['client_cpu_ratio']:.2f}",
                    f"{result['client_peak_bytes'] / 2**20:.1f} MiB",
                ],
                [
                    "server unmasks",
                    f"{result['server_open_s']:.3f}",
                    f"{result['server_limit_s']:.3f}",
                    f"{result['server_ratio']:.2f}",
                    f"{result['server_cpu_ratio']:.2f}",
                    f"{result['server_peak_bytes'] / 2**20:.1f} MiB",
                ],
            ],
        )
        out.say(f"A device uploads {result['upload_bytes']:,} bytes.")
        out.result(
            {
                **result,
                "clients": clients,
                "length": length,
                "bits": bits,
                "degree": workload.degree,
                "dropped": len(workload.dropped),
                "threads": workers,
            }
        )


@dataclass(frozen=True)
class _Workload:
    """A cohort's masks, made at random.

    Device i and device j share ``pair_keys[min, max]``; the smaller index adds, the larger
    subtracts.
    """

    clients: int
    length: int
    payload_length: int
    bits: int
    degree: int
    dropped: frozenset[int]
    self_keys: tuple[bytes, ...]
    pair_keys: dict[tuple[int, int], bytes]

    def neighbours(self, index: int) -> Iterator[int]:
        if self.degree == self.clients - 1:
            yield from (other for other in range(self.clients) if other != index)
            return
        for step in range(1, self.degree // 2 + 1):
            yield (index + step) % self.clients
            yield (index - step) % self.clients

    def client_terms(self, index: int) -> list[MaskTerm]:
        return [
            _term(self.self_keys[index], 1),
            *(
                _term(self.pair_keys[_edge(index, other)], 1 if index < other else -1)
                for other in self.neighbours(index)
            ),
        ]

    def unmasking_terms(self) -> list[MaskTerm]:
        """What is added to remove the survivors' self masks, and the pair masks that the dropped
        left uncancelled."""
        survivors = [index for index in range(self.clients) if index not in self.dropped]
        terms = [_term(self.self_keys[index], -1) for index in survivors]
        for index in survivors:
            terms += [
                _term(self.pair_keys[_edge(index, other)], -1 if index < other else 1)
                for other in self.neighbours(index)
                if other in self.dropped
            ]
        return terms


def _edge(one: int, other: int) -> tuple[int, int]:
    return (min(one, other), max(one, other))


def _term(key: bytes, sign: Literal[1, -1]) -> MaskTerm:
    from secagg.masks import MaskTerm
    from secagg.secret import Secret

    return MaskTerm(Secret(key), sign)


def _workload(
    clients: int, length: int, bits: int, dropout: float, degree: int | None
) -> _Workload:
    from secagg.limits import SLICE_LENGTH
    from secagg.ring import payload_length

    if degree is None or degree == clients - 1:
        degree = clients - 1
    elif degree > clients - 1 or degree % 2:
        raise CommandError(
            "degree",
            "The degree must be even and below the number of devices.",
            expected=f"an even number below {clients}",
            found=degree,
            remedy="Leave --degree out for the complete graph.",
        )
    dropped = frozenset(range(int(dropout * clients + 0.5)))
    if len(dropped) == clients:
        raise CommandError(
            "dropout",
            "Nobody would be left.",
            expected=f"fewer than {clients} devices that drop",
            found=len(dropped),
        )
    draft = _Workload(
        clients,
        length,
        payload_length(length, SLICE_LENGTH),
        bits,
        degree,
        dropped,
        tuple(secrets.token_bytes(32) for _ in range(clients)),
        {},
    )
    for index in range(clients):
        for other in draft.neighbours(index):
            draft.pair_keys.setdefault(_edge(index, other), secrets.token_bytes(32))
    return draft


def _measure(workload: _Workload, threads: int, repeat: int) -> dict[str, Any]:
    import numpy as np

    from secagg import ring
    from secagg.masks import apply_masks
    from secagg_cli.bench.upload import upload_bytes

    lanes = ring.lane_dtype(workload.bits)
    vector = np.zeros(workload.payload_length, lanes)
    client_terms = workload.client_terms(workload.clients - 1)
    unmasking_terms = workload.unmasking_terms()
    lane_bytes = np.dtype(lanes).itemsize * workload.payload_length
    client_bytes = lane_bytes * len(client_terms)
    server_bytes = lane_bytes * len(unmasking_terms)
    partial = np.zeros(workload.payload_length, lanes)

    def client() -> None:
        apply_masks(vector, client_terms, workload.bits)

    with ThreadPoolExecutor(threads) as pool:

        def server() -> None:
            _unmask(workload, unmasking_terms, partial, pool, threads)

        client_s, client_limit = best(client, lambda: key_stream(client_bytes, None, 1), repeat)
        server_s, server_limit = best(
            server, lambda: key_stream(server_bytes, pool, threads), repeat
        )
        client_peak = peak_bytes(client)
        server_peak = peak_bytes(server)
        _check(workload, unmasking_terms, pool, threads)
    return {
        "client_mask_s": round(client_s.wall_s, 6),
        "server_open_s": round(server_s.wall_s, 6),
        "client_limit_s": round(client_limit.wall_s, 6),
        "server_limit_s": round(server_limit.wall_s, 6),
        "client_ratio": round(client_s.wall_s / client_limit.wall_s, 3),
        "server_ratio": round(server_s.wall_s / server_limit.wall_s, 3),
        "client_cpu_ratio": round(client_s.cpu_s / client_limit.cpu_s, 3),
        "server_cpu_ratio": round(server_s.cpu_s / server_limit.cpu_s, 3),
        "upload_bytes": upload_bytes(
            workload.payload_length, workload.bits, workload.clients, workload.degree
        ),
        "client_peak_bytes": client_peak + vector.nbytes,
        "server_peak_bytes": server_peak + partial.nbytes,
    }


def _unmask(
    workload: _Workload,
    terms: Sequence[MaskTerm],
    partial: np.ndarray,
    pool: ThreadPoolExecutor,
    threads: int,
) -> None:
    from secagg.unmasking import UnmaskingPlan, unmask_slice

    plan = UnmaskingPlan(workload.bits, workload.payload_length, tuple(terms))
    # More pieces than threads, so that a thread that was disturbed delays nobody; but every piece
    # starts all key streams anew, so it must be worth that.
    step = max(_PIECE_MIN, -(-workload.payload_length // (4 * threads)))
    starts = range(0, workload.payload_length, step)
    for job in [
        pool.submit(unmask_slice, plan, partial, lo, min(lo + step, workload.payload_length))
        for lo in starts
    ]:
        job.result()


def _check(
    workload: _Workload, terms: Sequence[MaskTerm], pool: ThreadPoolExecutor, threads: int
) -> None:
    """Mask the last coordinates for every survivor and see that the unmasking removes all of it."""
    import numpy as np

    from secagg import ring
    from secagg.masks import apply_masks

    dtype = ring.lane_dtype(workload.bits)
    lo = max(0, workload.payload_length - _PROBE_COORDINATES)
    partial = np.zeros(workload.payload_length, dtype)
    for index in range(workload.clients):
        if index not in workload.dropped:
            piece = np.full(workload.payload_length - lo, 1, dtype)
            apply_masks(piece, workload.client_terms(index), workload.bits, lo)
            ring.add_into(partial[lo:], piece, workload.bits)
    _unmask(workload, terms, partial, pool, threads)
    survivors = workload.clients - len(workload.dropped)
    if not bool((ring.centred(partial[lo:], workload.bits) == survivors).all()):
        raise CommandError("sum-wrong", "The unmasked sum differs from the true sum.")
