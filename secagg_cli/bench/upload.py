"""What one device sends in one cohort, in bytes: real messages with blank contents."""

from __future__ import annotations

import nacl.signing

from secagg import limits, messages
from secagg.context import sealed_shares_bytes
from secagg.ring import packed_size


def upload_bytes(payload_length: int, ring_bits: int, clients: int, degree: int) -> int:
    """Advert, deals, ready, header, packed vector, confirmation and shares of one device.

    The device seals the pair seed on half of its edges (``graph.sealer`` is balanced); half is
    rounded up here. HTTP's own headers are not counted.
    """
    key = nacl.signing.SigningKey(bytes(limits.SEED_BYTES))
    blank = bytes(limits.DIGEST_BYTES)
    kem_key = bytes(limits.KEM_PUBLIC_KEY_BYTES)
    certificate = messages.Certificate(blank, blank, 2**32, bytes(limits.SIGNATURE_BYTES))
    last = clients - 1
    sent: list[messages.Message] = [
        messages.Advert(
            "x" * 16, blank, 1, blank, certificate, kem_key, kem_key, blank, blank, 2**32
        ),
        _deals(key, blank, last, degree),
        messages.Ready(blank, last, blank),
        messages.MaskedInput(blank, last, blank, blank, 2**32),
        messages.Confirmation(blank, last, blank, blank),
        messages.Unmask(
            blank,
            last,
            tuple(
                messages.RevealedShare(last, 1, bytes(limits.SHARE_BYTES)) for _ in range(degree)
            ),
        ),
    ]
    signed = sum(len(messages.sign(message, blank, key)) for message in sent)
    return signed + packed_size(payload_length, ring_bits)


def _deals(key: nacl.signing.SigningKey, blank: bytes, last: int, degree: int) -> messages.Deals:
    sealed_seed = bytes(limits.SEED_BYTES + limits.SEAL_OVERHEAD_BYTES)
    sealed_shares = bytes(sealed_shares_bytes(0) + limits.SEAL_OVERHEAD_BYTES)
    deals = []
    for number in range(degree):
        seed = sealed_seed if number < (degree + 1) // 2 else b""
        deal = messages.Deal(blank, last, last, seed, sealed_shares, (blank, blank))
        deals.append(messages.sign(deal, blank, key))
    return messages.Deals(blank, tuple(deals), ())
