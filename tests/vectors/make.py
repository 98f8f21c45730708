"""Writes ``tests/vectors/*.json``: run ``python -m tests.vectors.make`` in the repository's root.

All inputs come from a fixed seed. HPKE draws its own randomness, so seals that are in the files
already are kept, and a second run writes the same bytes. ``tests/vectors/test_vectors.py`` checks
the files with a second implementation that shares no code with the one that made them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dp.tlog import merkle, notes
from secagg import access_token as access
from secagg import adverts, context, hashing, keys, masks, messages, ring, sealing, sharing
from secagg.errors import SecaggError
from secagg.graph import harary, parameters
from secagg.secret import Secret
from secagg.simulation import EPOCH_S, SeededBytes, make_devices
from tests.vectors import refusals, transcript

FOLDER = Path(__file__).parent
SEED = 2026
Case = dict[str, Any]


def drawn(*labels: object, count: int = 32) -> bytes:
    return SeededBytes(SEED, *labels)(count)


def refused(use: Any) -> str:
    """The reason for which a negative vector is refused; it must be refused."""
    try:
        use()
    except SecaggError as error:
        return error.reason
    raise AssertionError("a negative vector was accepted")


def hashes() -> Case:
    part_lists = [[], [b""], [b"", b""], [b"abc"], [b"a", b"bc"], [drawn("part"), b"x" * 300]]
    return {
        "parts": [
            {
                "name": "mask",
                "parts": [part.hex() for part in values],
                "encoded": hashing.encode_parts("mask", *values).hex(),
                "digest": hashing.digest("mask", *values).hex(),
            }
            for values in part_lists
        ],
        "derive": [
            {
                "secret": drawn("secret", label).hex(),
                "name": label,
                "parts": [part.hex() for part in values],
                "salt": salt.hex(),
                "length": length,
                "key": hashing.derive(
                    drawn("secret", label), label, *values, salt=salt, length=length
                ).hex(),
            }
            for label, values, salt, length in [
                ("mask", [], drawn("salt"), 32),
                ("mask-key", [], b"", 96),
                ("channel-key", [], b"", 96),
                ("pair seed", [drawn("ctx"), drawn("a"), drawn("b")], b"", 32),
            ]
        ],
    }


def rings() -> Case:
    positive, negative = [], []
    for bits in (8, 9, 16, 17, 20, 24, 31, 32, 33, 48, 61, 62):
        data = np.frombuffer(drawn("data", bits, count=11 * 8), "<i8") >> (64 - bits)
        payload = ring.with_checks(data, bits, 4)
        positive.append(
            {
                "ring_bits": bits,
                "slice_length": 4,
                "data": data.tolist(),
                "payload": payload.tolist(),
                "packed": ring.pack(payload, bits).hex(),
            }
        )
    sound = bytes.fromhex(positive[1]["packed"])  # 14 coordinates of 9 bits: two bits of padding
    for name, packed in {
        "one-byte-short": sound[:-1],
        "one-byte-long": sound + b"\x00",
        "empty": b"",
        "highest-padding-bit-set": sound[:-1] + bytes([sound[-1] | 0x80]),
        "lowest-padding-bit-set": sound[:-1] + bytes([sound[-1] | 0x40]),
    }.items():
        reason = refused(lambda packed=packed: ring.unpack(packed, 14, 9))
        negative.append(
            {"name": name, "ring_bits": 9, "length": 14, "packed": packed.hex(), "reason": reason}
        )
    return {"positive": positive, "negative": negative}


def mask_streams() -> list[Case]:
    found = []
    for bits in (8, 16, 20, 32, 33, 62):
        seed, salt = drawn("seed", bits), drawn("salt", bits)
        key = masks.mask_key(Secret(seed), salt)
        lanes = np.zeros(19, ring.lane_dtype(bits))
        masks.apply_masks(lanes, [masks.MaskTerm(key, 1)], bits)
        found.append(
            {
                "ring_bits": bits,
                "seed": seed.hex(),
                "salt": salt.hex(),
                "key": key.reveal().hex(),
                "coordinates": lanes.tolist(),
            }
        )
    return found


def shares() -> Case:
    positive = []
    for threshold, holders in [(1, [0]), (2, [0, 2, 5]), (3, [1, 2, 3, 4]), (7, list(range(10)))]:
        label = ("shamir", threshold)
        secret = drawn(*label, "secret")
        source = SeededBytes(SEED, *label, "coefficients")
        coefficients = [
            int.from_bytes(source(48), "little") % sharing.PRIME for _ in range(threshold - 1)
        ]
        dealt = sharing.split(
            Secret(secret), threshold, holders, SeededBytes(SEED, *label, "coefficients")
        )
        positive.append(
            {
                "secret": secret.hex(),
                "threshold": threshold,
                "coefficients": [f"{value:x}" for value in coefficients],
                "shares": {str(holder): share.reveal().hex() for holder, share in dealt.items()},
            }
        )
    negative = []
    prime = sharing.PRIME
    for name, value in {
        "share-is-the-prime": prime,
        "share-above-the-prime": prime + 1,
        "all-ones": (1 << 264) - 1,
    }.items():
        share = value.to_bytes(33, "little")
        reason = refused(lambda share=share: sharing.join({0: share}, {0: 1}))
        negative.append({"name": name, "shares": {"0": share.hex()}, "reason": reason})
    for name, share in {"32-bytes": bytes(32), "34-bytes": bytes(34), "empty": b""}.items():
        reason = refused(lambda share=share: sharing.join({0: share}, {0: 1}))
        negative.append({"name": name, "shares": {"0": share.hex()}, "reason": reason})
    above = (1 << 256).to_bytes(33, "little")
    reason = refused(lambda: sharing.join({0: above}, {0: 1}))
    negative.append(
        {"name": "opens-above-256-bits", "shares": {"0": above.hex()}, "reason": reason}
    )
    return {"prime": f"{prime:x}", "positive": positive, "negative": negative}


def certificates() -> Case:
    partner, stranger = Secret(drawn("partner")), Secret(drawn("stranger"))
    public = keys.identity_public_key(partner)
    identity = keys.identity_public_key(Secret(drawn("identity")))
    good = keys.issue_certificate(partner, identity, EPOCH_S)
    change = msgspec.structs.replace
    foreign = keys.issue_certificate(stranger, identity, EPOCH_S)
    flipped = good.signature[:-1] + bytes([good.signature[-1] ^ 1])
    changed = {
        "expired-by-one-second-more-than-clocks-differ": (good, EPOCH_S + 301),
        "other-partner": (foreign, EPOCH_S),
        "other-partner-under-a-listed-name": (change(foreign, partner_key=public), EPOCH_S),
        "other-identity": (change(good, identity_key=drawn("other")), EPOCH_S),
        "later-expiry": (change(good, not_after=EPOCH_S + 1), EPOCH_S),
        "negative-expiry": (change(good, not_after=-1), 0),
        "changed-signature": (change(good, signature=flipped), EPOCH_S),
        "no-signature": (change(good, signature=b""), EPOCH_S),
        "identity-of-31-bytes": (change(good, identity_key=identity[:-1]), EPOCH_S),
    }
    return {
        "partner_key": public.hex(),
        "positive": {"certificate": msgspec.msgpack.encode(good).hex(), "now_s": EPOCH_S},
        "negative": [
            {
                "name": name,
                "certificate": msgspec.msgpack.encode(certificate).hex(),
                "now_s": now_s,
                "reason": refused(
                    lambda c=certificate, n=now_s: keys.verify_certificate(c, {public}, n)
                ),
            }
            for name, (certificate, now_s) in changed.items()
        ],
    }


def hybrid(old: Case) -> Case:
    """Frozen seals: only opening can be checked."""
    secret = drawn("kem")
    public = sealing.kem_public_key(Secret(secret), "mask-key")
    seals = []
    for at, plaintext in enumerate([b"", drawn("pair"), drawn("shares", count=66)]):
        info = context.seal_info(drawn("ctx"), drawn("from"), drawn("to"), b"shares")
        kept = old.get("seals", [])
        sealed = kept[at]["sealed"] if kept else sealing.hpke_seal(public, info, plaintext).hex()
        seals.append({"info": info.hex(), "plaintext": plaintext.hex(), "sealed": sealed})
    private = sealing.kem_private_key(Secret(secret), "mask-key")
    good, info = bytes.fromhex(seals[1]["sealed"]), bytes.fromhex(seals[1]["info"])
    broken = {
        "other-info": (info + b"x", good),
        "changed-kem-ciphertext": (info, bytes([good[0] ^ 1]) + good[1:]),
        "changed-x25519-point": (info, good[:1088] + bytes([good[1088] ^ 1]) + good[1089:]),
        "low-order-x25519-point": (info, good[:1088] + bytes(32) + good[1120:]),
        "changed-text": (info, good[:1120] + bytes([good[1120] ^ 1]) + good[1121:]),
        "changed-tag": (info, good[:-1] + bytes([good[-1] ^ 1])),
        "truncated": (info, good[:-1]),
        "empty": (info, b""),
    }
    point = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
    bad_keys = {
        "short": public[:-1],
        "x25519-zero": public[:1184] + bytes(32),
        "x25519-order-8": public[:1184] + point,
        "mlkem-not-canonical": b"\xff" * 3 + public[3:],
    }
    return {
        "secret": secret.hex(),
        "label": "mask-key",
        "public_key": public.hex(),
        "seals": seals,
        "negative_seals": [
            {
                "name": name,
                "info": info.hex(),
                "sealed": sealed.hex(),
                "reason": refused(lambda i=info, s=sealed: sealing.hpke_open(private, i, s)),
            }
            for name, (info, sealed) in broken.items()
        ],
        "negative_public_keys": [
            {
                "name": name,
                "public_key": bad.hex(),
                "reason": refused(lambda bad=bad: sealing.check_kem_public_key(bad)),
            }
            for name, bad in bad_keys.items()
        ],
    }


def signed_messages() -> Case:
    """Named negatives of the frame, its signature and its context, over one sound message."""
    key, other = (keys.signing_key(Secret(drawn("signer", n))) for n in (1, 2))
    ctx, other_ctx = drawn("ctx", 1), drawn("ctx", 2)
    name = drawn("pseudonym")
    ready = messages.Ready(ctx, 5, name)
    frame, good = messages.encode(ready), messages.sign(ready, ctx, key)
    public = bytes(key.verify_key)

    def envelope(frame: bytes, label: str = "sign Ready", bound: bytes = ctx) -> bytes:
        signature = key.sign(hashing.encode_parts(label, bound, frame)).signature
        return msgspec.msgpack.encode([frame, public, signature])

    body = msgspec.msgpack.encode
    signature = key.sign(messages.signature_input(messages.Ready, ctx, frame)).signature
    order = 2**252 + 27742317777372353535851937790883648493
    high_s = int.from_bytes(signature[32:], "little") + order
    cases = {
        "empty": b"",
        "truncated": good[:-1],
        "trailing-byte": good + b"\x00",
        "empty-frame": envelope(b""),
        "version-2": envelope(b"\x02" + frame[1:]),
        "unknown-kind": envelope(b"\x01\xff" + frame[2:]),
        "other-kind": envelope(b"\x01\x07" + frame[2:]),
        "missing-field": envelope(frame[:2] + body([ctx])),
        "extra-field": envelope(frame[:2] + body([ctx, 5, name, 6])),
        "text-for-bytes": envelope(frame[:2] + body(["x" * 32, 5, name])),
        "float-for-integer": envelope(frame[:2] + body([ctx, 5.0, name])),
        "map-for-array": envelope(frame[:2] + body({"ctx": ctx, "index": 5, "pseudonym": name})),
        "null-field": envelope(frame[:2] + body([ctx, None, name])),
        "signed-for-another-kind": envelope(frame, "sign Confirmation"),
        "signed-without-context": envelope(frame, bound=b""),
        "signed-for-another-context": envelope(frame, bound=other_ctx),
        "signed-by-another-key": messages.sign(ready, ctx, other),
        "signature-of-another-frame": body(
            [frame[:-1] + bytes([frame[-1] ^ 1]), public, signature]
        ),
        "signature-with-s-plus-l": body(
            [frame, public, signature[:32] + high_s.to_bytes(32, "little")]
        ),
        "signature-of-63-bytes": body([frame, public, signature[:-1]]),
        "key-of-low-order": body([frame, b"\x01" + bytes(31), b"\x01" + bytes(63)]),
    }
    return {
        "ctx": ctx.hex(),
        "signer": public.hex(),
        "frame": frame.hex(),
        "signed": good.hex(),
        "negative": [
            {
                "name": name,
                "signed": data.hex(),
                "reason": refused(
                    lambda data=data: messages.verify(data, ctx, messages.Ready, signer=public)
                ),
            }
            for name, data in cases.items()
        ],
    }


def advert_cases() -> Case:
    shown = transcript.task()
    config, device = shown.server, make_devices(shown, transcript.inputs(), seed=SEED)[0]
    partners = frozenset(shown.manifest.partner_keys)
    good, _ = messages.peek(device.advert, messages.Advert)
    own, own_partner = keys.signing_key(device.config.identity), good.certificate.partner_key
    change = msgspec.structs.replace
    stranger = Secret(drawn("stranger"))
    forged = keys.issue_certificate(stranger, good.certificate.identity_key, EPOCH_S * 2)
    changed = {
        "other-task": change(good, task="other"),
        "other-manifest": change(good, manifest_digest=drawn("manifest")),
        "expired": change(good, expires_at=EPOCH_S - 301),
        "unknown-partner": change(good, certificate=forged),
        "short-mask-key": change(good, mask_key=good.mask_key[:-1]),
        "same-keys": change(good, channel_key=good.mask_key),
        "short-nonce": change(good, nonce=b"n"),
        "short-commitment": change(good, self_seed_commitment=b""),
        "short-model-digest": change(good, model_digest=b""),
        "trust-without-its-own-partner": change(good, trusted=(drawn("partner"),)),
        "trust-out-of-order": change(good, trusted=(own_partner, bytes(32))),
        "trust-in-a-short-key": change(good, trusted=(b"", own_partner)),
        "trust-in-129-partners": change(
            good, trusted=(*(bytes([0, n]) + bytes(30) for n in range(128)), own_partner)
        ),
    }
    cases = {name: messages.sign(advert, b"", own) for name, advert in changed.items()}
    cases["signed-by-another-key"] = messages.sign(good, b"", keys.signing_key(stranger))

    def check(signed: bytes) -> None:
        adverts.check_advert(signed, config.manifest, config.manifest_digest, partners, EPOCH_S)

    check(device.advert)
    token = access.issue_access_token(
        device.config.identity, device.config.certificate, drawn("audience"), EPOCH_S
    )
    return {
        "manifest_digest": config.manifest_digest.hex(),
        "now_s": EPOCH_S,
        "signed": device.advert.hex(),
        "digest": context.advert_digest(device.advert).hex(),
        "negative": [
            {"name": name, "signed": data.hex(), "reason": refused(lambda d=data: check(d))}
            for name, data in cases.items()
        ],
        "access_token": {"audience": drawn("audience").hex(), "token": token},
    }


def contexts() -> Case:
    ctx, dealer, holder, share = (drawn("context", name) for name in "cdhs")
    members, survivors = [0, 2, 3, 7], [0, 3, 7]
    masking = context.masking_set_digest(ctx, members)
    return {
        "ctx": ctx.hex(),
        "dealer": dealer.hex(),
        "holder": holder.hex(),
        "share": share.hex(),
        "masking_set": {"members": members, "digest": masking.hex()},
        "survivor_set": {
            "members": survivors,
            "digest": context.survivor_set_digest(ctx, masking, survivors).hex(),
        },
        "self_seed_commitment": context.self_seed_commitment(dealer, Secret(share)).hex(),
        "pseudonym": context.pseudonym(Secret(share), ctx).hex(),
        "pair_seed": context.pair_seed(Secret(share), ctx, dealer, holder).reveal().hex(),
        "seal_info": context.seal_info(ctx, dealer, holder, b"pair seed").hex(),
        "share_hashes": {
            "self share": context.share_hash(0, ctx, dealer, holder, share).hex(),
            "mask share": context.share_hash(1, ctx, dealer, holder, share).hex(),
            "noise share 0": context.share_hash(2, ctx, dealer, holder, share).hex(),
            "noise share 7": context.share_hash(9, ctx, dealer, holder, share).hex(),
        },
        "sealers": [[i, j, harary.sealer(i, j)] for i in range(5) for j in range(5) if i != j],
        "complete_graph": [list(harary.neighbours(i, 5)) for i in range(5)],
        "thresholds": [
            [k, c, parameters.threshold(k, c)]
            for k in (2, 3, 5, 9, 99)
            for c in (0, 1)
            if (k + c) // 2 + 1 <= k
        ],
    }


def graphs() -> Case:
    """Harary graphs on the circle; each with the whole neighbourhood of a few devices."""
    positive = []
    for size, degree in [(129, 4), (200, 30), (1_000, 96)]:
        seed = drawn("graph", size, degree)
        shown = harary.Graph(size, degree, seed)
        positive.append(
            {
                "cohort_size": size,
                "degree": degree,
                "roster_digest": seed.hex(),
                "devices": [
                    {
                        "index": index,
                        "neighbours": list(shown.neighbours(index)),
                        "seals_to": [
                            other
                            for other in shown.neighbours(index)
                            if shown.sealer(index, other) == index
                        ],
                    }
                    for index in (0, 1, size // 2, size - 1)
                ],
            }
        )
    sound = harary.Graph(200, 4, drawn("graph"))
    stranger = next(other for other in range(1, 200) if not sound.adjacent(0, other))
    cases = {
        "odd-degree": lambda: harary.Graph(200, 5, bytes(32)),
        "negative-degree": lambda: harary.Graph(200, -2, bytes(32)),
        "index-beyond-the-roster": lambda: sound.neighbours(200),
        "negative-index": lambda: sound.neighbours(-1),
        "sealer-of-no-edge": lambda: sound.sealer(0, stranger),
        "edge-to-oneself": lambda: sound.sealer(0, 0),
    }
    negative = [{"name": name, "reason": refused(use)} for name, use in cases.items()]
    return {"positive": positive, "negative": negative}


def ledger() -> Case:
    entries = [drawn("leaf", at, count=at * 3) for at in range(11)]
    hashes = [merkle.leaf_hash(entry) for entry in entries]

    def subtree(level: int, index: int) -> bytes:
        if level == 0:
            return hashes[index]
        return merkle.node_hash(subtree(level - 1, 2 * index), subtree(level - 1, 2 * index + 1))

    name, seed = "vectors.example/ledger", Secret(drawn("note"))
    public = keys.identity_public_key(seed)
    root = merkle.root(subtree, len(entries))
    note = notes.sign_checkpoint(notes.Checkpoint(name, len(entries), root), seed)
    verifier = notes.parse_verifier(notes.verifier_key(name, public))
    other = keys.identity_public_key(Secret(drawn("other note")))
    broken = {
        "no-signature": note.split(b"\n\n")[0] + b"\n",
        "changed-size": note.replace(b"\n11\n", b"\n12\n"),
        "carriage-return": note.replace(b"\n11\n", b"\r\n11\r\n"),
        "no-last-newline": note[:-1],
        "signed-by-another-key": notes.sign_checkpoint(
            notes.Checkpoint(name, len(entries), root), Secret(drawn("other note"))
        ),
    }
    return {
        "entries": [entry.hex() for entry in entries],
        "roots": [merkle.root(subtree, size).hex() for size in range(1, len(entries) + 1)],
        "inclusion": [
            [i, n, [h.hex() for h in merkle.inclusion_proof(subtree, i, n)]]
            for i, n in [(0, 1), (0, 8), (5, 8), (2, 3), (10, 11), (7, 11)]
        ],
        "consistency": [
            [m, n, [h.hex() for h in merkle.consistency_proof(subtree, m, n)]]
            for m, n in [(1, 8), (6, 8), (2, 5), (8, 11), (11, 11), (7, 10)]
        ],
        "origin": name,
        "public_key": public.hex(),
        "other_public_key": other.hex(),
        "verifier_key": notes.verifier_key(name, public),
        "checkpoint": note.decode(),
        "negative": [
            {
                "name": title,
                "note": data.decode(),
                "reason": refused(lambda data=data: notes.open_checkpoint(data, verifier)),
            }
            for title, data in broken.items()
        ],
    }


def load(name: str) -> Case:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def everything() -> dict[str, Any]:
    """All vectors by file name, with the seals that the files hold already."""
    exchanges = {
        name: transcript.record(name, load(f"transcript-{name}").get("seals", {}))
        for name in transcript.NAMES
    }
    return {
        "hashing": hashes(),
        "ring": rings(),
        "masks": {"positive": mask_streams()},
        "sharing": shares(),
        "certificates": certificates(),
        "hybrid": hybrid(load("hybrid")),
        "signed": signed_messages(),
        "adverts": advert_cases(),
        "context": contexts(),
        "graph": graphs(),
        "ledger": ledger(),
        "refusals": refusals.make(exchanges["complete"]),
        **{f"transcript-{name}": record for name, record in exchanges.items()},
    }


def rendered(case: Any) -> str:
    return json.dumps(case, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for name, case in everything().items():
        (FOLDER / f"{name}.json").write_text(rendered(case))


if __name__ == "__main__":
    main()
