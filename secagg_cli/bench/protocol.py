"""``secagg bench protocol``: packing, sharing, sealing, signatures, encoding, beside their limits.

A limit is the bare operation of the library below, measured in turns with the work in the same
process, in CPU time: the AES-256-CTR key stream over the vector's lanes, one 256-bit product modulo
the sharing prime, one seal with ready-made keys, one Ed25519 verification. Encoding has a limit of
seconds instead (2 s for a million coordinates).
"""

from __future__ import annotations

import secrets
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from secagg_cli.bench.measure import Span, best, key_stream, peak_bytes, timed
from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from secagg.manifest import Manifest

_ENCODE_S_PER_COORDINATE = 2e-6
_SEALS = 100  # at a time, of which the mean counts
_SIGNATURES = 200


@dataclass(frozen=True)
class _Row:
    """``work_s`` and ``limit_s``: CPU seconds of one ``unit``."""

    name: str
    unit: str
    limit_name: str
    work_s: float
    limit_s: float
    peak_bytes: int

    def keys(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "limit": self.limit_name,
            "work_s": round(self.work_s, 9),
            "limit_s": round(self.limit_s, 9),
            "ratio": round(self.work_s / self.limit_s, 3),
            "peak_bytes": self.peak_bytes,
        }


def protocol(
    clients: Annotated[int, number("Holders of the shares of one secret.", low=3, high=512)] = 100,
    length: Annotated[int, number("Coordinates of a vector.", low=1, high=1 << 28)] = 1_000_000,
    bits: Annotated[int, number("Bits per coordinate.", low=8, high=62)] = 24,
    repeat: Annotated[int, number("Measure so often; the best counts.", low=1)] = 3,
    format: FormatOption = Format.text,
) -> None:
    """The parts of the protocol beside the masks, and the encoding before them."""
    with Output(format) as out:
        rows = [
            *_packing(length, bits, repeat),
            *_sharing(clients, repeat),
            *_sealing(repeat),
            *_signatures(repeat),
            *_encoding(length, repeat),
        ]
        out.table(
            None,
            ["", "seconds", "limit", "of", "ratio", "peak"],
            [
                [
                    f"{row.name} (a {row.unit})",
                    f"{row.work_s:.3g}",
                    f"{row.limit_s:.3g}",
                    row.limit_name,
                    f"{row.work_s / row.limit_s:.2f}",
                    f"{row.peak_bytes / 2**20:.1f} MiB",
                ]
                for row in rows
            ],
        )
        out.result(
            {
                "clients": clients,
                "length": length,
                "bits": bits,
                "parts": [row.keys() for row in rows],
            }
        )


def _row(
    name: str,
    unit: str,
    work: Callable[[], object],
    limit_name: str,
    limit: Callable[[], Span],
    repeat: int,
    count: int = 1,
) -> _Row:
    """``work`` does ``count`` units; ``limit`` measures as many."""
    done, bare = best(work, limit, repeat)
    return _Row(name, unit, limit_name, done.cpu_s / count, bare.cpu_s / count, peak_bytes(work))


def _repeated(work: Callable[[], object], count: int) -> Callable[[], Span]:
    def run() -> None:
        for _ in range(count):
            work()

    return lambda: timed(run)


def _packing(length: int, bits: int, repeat: int) -> list[_Row]:
    import numpy as np

    from secagg import ring

    lanes = np.frombuffer(secrets.token_bytes(8 * length), "<u8") & np.uint64((1 << bits) - 1)
    vector = lanes.astype(ring.lane_dtype(bits))
    packed = ring.pack(vector, bits)
    limit = "key stream of one mask"

    def stream() -> Span:
        return key_stream(vector.nbytes, None, 1)

    return [
        _row("pack", "vector", lambda: ring.pack(vector, bits), limit, stream, repeat),
        _row("unpack", "vector", lambda: ring.unpack(packed, length, bits), limit, stream, repeat),
    ]


def _sharing(clients: int, repeat: int) -> list[_Row]:
    from secagg import sharing
    from secagg.secret import Secret

    threshold = 2 * clients // 3 + 1
    holders = range(clients)
    owned = [Secret(secrets.token_bytes(32)) for _ in range(clients)]
    kept = range(threshold)
    dealt = [sharing.split(secret, threshold, holders, secrets.token_bytes) for secret in owned]
    revealed = [{holder: shares[holder].reveal() for holder in kept} for shares in dealt]
    limit = "products mod p"
    field, point = secrets.randbelow(sharing.PRIME), sharing.point(clients)

    def products(count: int) -> Span:
        """``count`` times a field element times an evaluation point, reduced."""
        return timed(lambda: timeit.timeit("a * b % p", number=count, globals=names))

    names = {"a": field, "b": point, "p": sharing.PRIME}

    def join_all() -> None:
        """Every owner's secret from the same holders: the coefficients are computed once."""
        coefficients = sharing.lagrange_at_zero(kept)
        for shares in revealed:
            sharing.join(shares, coefficients)

    return [
        _row(
            f"split, {threshold} of {clients}",
            "secret",
            lambda: sharing.split(owned[0], threshold, holders, secrets.token_bytes),
            limit,
            lambda: products(clients * (threshold - 1)),
            repeat,
        ),
        _row(
            "Lagrange coefficients",
            "share set",
            lambda: sharing.lagrange_at_zero(kept),
            limit,
            lambda: products(2 * threshold * (threshold - 1)),
            repeat,
        ),
        _row(
            f"join {clients}, coefficients included",
            "secret",
            join_all,
            limit,
            lambda: products((2 * threshold - 2 + clients) * threshold),
            repeat,
            clients,
        ),
    ]


def _sealing(repeat: int) -> list[_Row]:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    from secagg import sealing
    from secagg.context import CHANNEL_KEY, sealed_shares_bytes
    from secagg.secret import Secret

    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    secret = Secret(secrets.token_bytes(32))
    private = sealing.kem_private_key(secret, CHANNEL_KEY)
    public = private.public_key()
    public_bytes = sealing.kem_public_key(secret, CHANNEL_KEY)
    info, plain = secrets.token_bytes(128), secrets.token_bytes(sealed_shares_bytes(0))
    sealed = sealing.hpke_seal(public_bytes, info, plain)

    def seal() -> None:
        for _ in range(_SEALS):
            sealing.hpke_seal(public_bytes, info, plain)

    def unseal() -> None:
        for _ in range(_SEALS):
            sealing.hpke_open(private, info, sealed)

    raw_seal = _repeated(lambda: suite.encrypt(plain, public, info), _SEALS)
    raw_open = _repeated(lambda: suite.decrypt(sealed, private, info), _SEALS)
    return [
        _row("seal", "seal", seal, "raw seal", raw_seal, repeat, _SEALS),
        _row("open a seal", "seal", unseal, "raw opening", raw_open, repeat, _SEALS),
    ]


def _signatures(repeat: int) -> list[_Row]:
    import nacl.signing

    from secagg import messages

    key = nacl.signing.SigningKey.generate()
    ctx = secrets.token_bytes(32)
    message = messages.Confirmation(ctx, 1, secrets.token_bytes(32), secrets.token_bytes(32))
    signed = messages.sign(message, ctx, key)
    covered = messages.signature_input(messages.Confirmation, ctx, messages.encode(message))
    signature = key.sign(covered).signature
    raw_key = key.verify_key

    def sign() -> None:
        for _ in range(_SIGNATURES):
            messages.sign(message, ctx, key)

    def verify() -> None:
        for _ in range(_SIGNATURES):
            messages.verify(signed, ctx, messages.Confirmation, signer=bytes(raw_key))

    raw_sign = _repeated(lambda: key.sign(covered), _SIGNATURES)
    raw_verify = _repeated(lambda: raw_key.verify(covered, signature), _SIGNATURES)
    return [
        _row("sign a message", "message", sign, "raw signature", raw_sign, repeat, _SIGNATURES),
        _row(
            "verify a message",
            "message",
            verify,
            "raw verification",
            raw_verify,
            repeat,
            _SIGNATURES,
        ),
    ]


def _encoding(length: int, repeat: int) -> list[_Row]:
    """Rotation, clip, stochastic rounding and Skellam noise with its removable parts; the noise
    tables are made before."""
    import numpy as np

    from dp.encoding import encode
    from secagg.secret import Secret

    values = np.frombuffer(secrets.token_bytes(length), np.int8).astype(np.float64)
    values /= float(np.linalg.norm(values)) or 1.0
    manifest = _device_private(length)
    name = manifest.segments[0].name

    def work() -> object:
        return encode(
            manifest,
            {name: values},
            rotation_seed=bytes(32),
            random_bytes=secrets.token_bytes,
            masking_set_size=manifest.cohort.size_max,
            noise_seeds=[Secret(secrets.token_bytes(32)) for _ in manifest.removable_drops],
        )

    work()
    limit_s = _ENCODE_S_PER_COORDINATE * length
    return [
        _row(
            "encode with device noise",
            "vector",
            work,
            "goal",
            lambda: Span(limit_s, limit_s),
            repeat,
        )
    ]


def _device_private(length: int) -> Manifest:
    """A task whose devices rotate, clip, round and add noise to ``length`` numbers."""
    import nacl.signing

    from dp.contracts import BudgetSpec, CohortSpec, SegmentSpec, TaskSpec, build_manifest
    from dp.tlog.notes import verifier_key

    key = bytes(nacl.signing.SigningKey.generate().verify_key)
    spec = TaskSpec(
        task="bench",
        algorithm="sum",
        segments=(SegmentSpec(name="values", length=length, clip=1.0),),
        privacy="none",
        device_noise_multiplier=1.0,
        cohort=CohortSpec(size_min=6, size_max=6, survivors_min=4, corrupt_max=0),
        budget=BudgetSpec(releases_max=1),
    )
    return build_manifest(
        spec,
        created_at=int(time.time()),
        task_key=key,
        ledger_verifier=verifier_key("bench/ledger", key),
        partner_keys=[key],
    )
