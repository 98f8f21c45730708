"""The vectors, checked by a second implementation; and that the script still writes them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.vectors import make, transcript
from tests.vectors import reference as ref

FOLDER = Path(__file__).parent
unhex = bytes.fromhex


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_the_script_writes_these_files_byte_by_byte() -> None:
    """All but what HPKE drew, which the files freeze."""
    written = make.everything()
    assert set(written) == {path.stem for path in FOLDER.glob("*.json")}
    for name, case in written.items():
        assert make.rendered(case) == (FOLDER / f"{name}.json").read_text(), name


def test_negative_vectors_have_names_and_stable_reasons() -> None:
    """Which input is refused for which reason is part of the public interface."""
    names: list[str] = []
    for path in FOLDER.glob("*.json"):
        for key, cases in load(path.stem).items():
            if key.startswith("negative"):
                found = [case["name"] for case in cases]
                assert len(found) == len(set(found)), path
                assert all(case["reason"] for case in cases)
                names += found
    assert len(names) >= 60


# -- primitives ------------------------------------------------------------------------------------


def test_hashes_and_keys() -> None:
    vectors = load("hashing")
    for case in vectors["parts"]:
        values = [unhex(part) for part in case["parts"]]
        assert ref.parts(case["name"], *values).hex() == case["encoded"]
        assert ref.labelled(case["name"], *values).hex() == case["digest"]
    for case in vectors["derive"]:
        values = [unhex(part) for part in case["parts"]]
        salt, length = unhex(case["salt"]), case["length"]
        key = ref.kdf(unhex(case["secret"]), case["name"], *values, salt=salt, length=length)
        assert key.hex() == case["key"]


def test_ring_and_packing() -> None:
    vectors = load("ring")
    for case in vectors["positive"]:
        payload = ref.payload(case["data"], case["ring_bits"], case["slice_length"])
        assert payload == case["payload"]
        assert ref.packed(payload, case["ring_bits"]).hex() == case["packed"]
    for case in vectors["negative"]:
        data, length, bits = unhex(case["packed"]), case["length"], case["ring_bits"]
        assert ref.packed(ref.unpacked(data, length, bits), bits) != data, case["name"]


def test_masks() -> None:
    for case in load("masks")["positive"]:
        seed, salt = unhex(case["seed"]), unhex(case["salt"])
        assert ref.kdf(seed, "mask", salt=salt).hex() == case["key"]
        expected = case["coordinates"]
        assert ref.mask(seed, salt, len(expected), case["ring_bits"]) == expected


def test_shares() -> None:
    vectors = load("sharing")
    assert int(vectors["prime"], 16) == ref.PRIME
    for case in vectors["positive"]:
        coefficients = [int(value, 16) for value in case["coefficients"]]
        shares = {int(holder): unhex(share) for holder, share in case["shares"].items()}
        for holder, share in shares.items():
            assert ref.shared(unhex(case["secret"]), coefficients, holder) == share
        few = dict(list(shares.items())[-case["threshold"] :])
        assert ref.joined(few) == int.from_bytes(unhex(case["secret"]), "little")
    for case in vectors["negative"]:
        share = unhex(case["shares"]["0"])
        value = int.from_bytes(share, "little")
        assert len(share) != 33 or value >= 2**256, case["name"]


def certificate_verifies(fields: list[Any]) -> bool:
    identity, partner, not_after, signature = fields
    if not 0 <= not_after < 1 << 63 or len(identity) != 32:
        return False
    signed = ref.parts("certificate", identity, partner, ref.integers(not_after))
    return ref.verifies(partner, signed, signature)


def test_certificates() -> None:
    vectors = load("certificates")
    partner = unhex(vectors["partner_key"])

    def counts(case: dict[str, Any]) -> bool:
        fields = msgspec.msgpack.decode(unhex(case["certificate"]))
        listed = fields[1] == partner and fields[2] + 300 >= case["now_s"]
        return listed and certificate_verifies(fields)

    assert counts(vectors["positive"])
    for case in vectors["negative"]:
        assert not counts(case), case["name"]


def test_hybrid_keys_and_seals() -> None:
    vectors = load("hybrid")
    secret, label = unhex(vectors["secret"]), vectors["label"]
    assert ref.hybrid_public(secret, label).hex() == vectors["public_key"]
    for case in vectors["seals"]:
        opened = ref.opened(secret, label, unhex(case["info"]), unhex(case["sealed"]))
        assert opened.hex() == case["plaintext"]
    for case in vectors["negative_seals"]:
        with pytest.raises((InvalidTag, ValueError)):
            ref.opened(secret, label, unhex(case["info"]), unhex(case["sealed"]))


def envelope_verifies(signed: bytes, ctx: bytes, kind: str, number: int) -> list[Any] | None:
    """The fields of a signed frame, if frame and signature are good."""
    try:
        frame, signer, signature = msgspec.msgpack.decode(signed, type=tuple[bytes, bytes, bytes])
    except (msgspec.MsgspecError, ValueError):
        return None
    if frame[:2] != bytes((1, number)):
        return None
    if not ref.verifies(signer, ref.parts("sign " + kind, ctx, frame), signature):
        return None
    fields = msgspec.msgpack.decode(frame[2:])
    return fields if isinstance(fields, list) else None


def test_signed_messages() -> None:
    vectors = load("signed")
    ctx, signer = unhex(vectors["ctx"]), unhex(vectors["signer"])
    fields = envelope_verifies(unhex(vectors["signed"]), ctx, "Ready", 6)
    assert fields is not None
    assert vectors["frame"] == "0106" + msgspec.msgpack.encode(fields).hex()
    assert fields[:2] == [ctx, 5]
    assert len(fields[2]) == 32

    def sound(data: bytes) -> bool:
        fields = envelope_verifies(data, ctx, "Ready", 6)
        if fields is None or [type(field) for field in fields] != [bytes, int, bytes]:
            return False
        return msgspec.msgpack.decode(data)[1] == signer

    assert sound(unhex(vectors["signed"]))
    for case in vectors["negative"]:
        assert not sound(unhex(case["signed"])), case["name"]


def test_adverts_and_tokens() -> None:
    vectors = load("adverts")
    signed = unhex(vectors["signed"])
    assert ref.labelled("advert", signed).hex() == vectors["digest"]
    fields = envelope_verifies(signed, b"", "Advert", 1)
    assert fields is not None
    _, manifest_digest, _, model, certificate, mask_key, channel_key, *rest = fields
    commitment, nonce, expiry, trusted = rest
    assert trusted == []  # but its own partner
    assert manifest_digest.hex() == vectors["manifest_digest"]
    assert certificate_verifies(certificate)
    assert certificate[0] == msgspec.msgpack.decode(signed)[1]
    assert [len(part) for part in (mask_key, channel_key)] == [1216, 1216]
    assert [len(part) for part in (model, commitment, nonce)] == [32, 32, 32]
    assert expiry > vectors["now_s"]
    token = vectors["access_token"]
    decoded = msgspec.msgpack.decode(base64.urlsafe_b64decode(token["token"]))
    certificate, expires_at, signature = decoded if isinstance(decoded, list) else decoded.values()
    identity = certificate[0] if isinstance(certificate, list) else certificate["identity_key"]
    text = ref.parts("access", unhex(token["audience"]), ref.integers(expires_at))
    assert ref.verifies(identity, text, signature)


def test_what_is_bound_to_a_context() -> None:
    case = load("context")
    ctx, dealer, holder, share = (unhex(case[key]) for key in ("ctx", "dealer", "holder", "share"))
    masking = ref.labelled("masking set", ctx, ref.integers(*case["masking_set"]["members"]))
    assert masking.hex() == case["masking_set"]["digest"]
    members = ref.integers(*case["survivor_set"]["members"])
    survivors = ref.labelled("survivor set", ctx, masking, members)
    assert survivors.hex() == case["survivor_set"]["digest"]
    assert ref.labelled("self seed", dealer, share).hex() == case["self_seed_commitment"]
    assert ref.pseudonym(share, ctx).hex() == case["pseudonym"]
    assert ref.kdf(share, "pair seed", ctx, dealer, holder).hex() == case["pair_seed"]
    assert ref.parts("seal", ctx, dealer, holder, b"pair seed").hex() == case["seal_info"]
    for label, digest in case["share_hashes"].items():
        assert ref.labelled(label, ctx, dealer, holder, share).hex() == digest
    for first, second, sealer in case["sealers"]:
        assert ref.sealer(first, second) == sealer
    for index, neighbours in enumerate(case["complete_graph"]):
        assert neighbours == [other for other in range(5) if other != index]
    for neighbours, corrupt, threshold in case["thresholds"]:
        assert threshold == (neighbours + corrupt) // 2 + 1


def test_sparse_graphs() -> None:
    for case in load("graph")["positive"]:
        order = ref.circle(unhex(case["roster_digest"]), case["cohort_size"])
        for device in case["devices"]:
            neighbours, seals_to = ref.on_circle(order, case["degree"], device["index"])
            assert device["neighbours"] == neighbours
            assert len(neighbours) == case["degree"]
            assert device["seals_to"] == seals_to


def test_ledger() -> None:
    vectors = load("ledger")
    entries = [unhex(entry) for entry in vectors["entries"]]
    for size, root in enumerate(vectors["roots"], start=1):
        assert ref.merkle_root(entries[:size]).hex() == root
    for index, size, proof in vectors["inclusion"]:
        assert [node.hex() for node in ref.merkle_path(index, entries[:size])] == proof
    for old, size, proof in vectors["consistency"]:
        assert [node.hex() for node in ref.merkle_proof(old, entries[:size])] == proof
    origin, public = vectors["origin"], unhex(vectors["public_key"])
    key_id = ref.note_key_id(origin, public)
    encoded = base64.b64encode(b"\x01" + public).decode()
    assert vectors["verifier_key"] == f"{origin}+{key_id.hex()}+{encoded}"

    def verifies(note: str) -> bool:
        text, mark, signatures = note.partition("\n\n")
        if not mark or not signatures.endswith("\n") or "\r" in text:
            return False
        _, name, blob = signatures[:-1].split(" ")
        signature = base64.b64decode(blob)
        signed = (text + "\n").encode()
        same = (name, signature[:4]) == (origin, key_id)
        return same and ref.verifies(public, signed, signature[4:])

    root = base64.b64encode(ref.merkle_root(entries)).decode()
    assert vectors["checkpoint"].startswith(f"{origin}\n{len(entries)}\n{root}\n\n")
    assert verifies(vectors["checkpoint"])
    for case in vectors["negative"]:
        assert not verifies(case["note"]), case["name"]


# -- whole exchanges -------------------------------------------------------------------------------

KINDS = {
    "Advert": 1,
    "Roster": 2,
    "Deal": 3,
    "Deals": 4,
    "Inbox": 5,
    "Ready": 6,
    "Complaint": 7,
    "MaskingSet": 8,
    "MaskedInput": 9,
    "SurvivorSet": 10,
    "Confirmation": 11,
    "Confirmations": 12,
    "Unmask": 13,
    "Receipt": 14,
    "Abort": 15,
    "Refusal": 16,
}


class Exchange:
    """A transcript, read by the second implementation."""

    def __init__(self, name: str) -> None:
        self.data = load(f"transcript-{name}")
        self.bits = self.data["ring_bits"]
        roster = next(line for line in self.data["messages"] if line["kind"] == "Roster")
        fields = self.fields(roster, b"")
        self.task, self.cohort, self.attempt, self.manifest, self.models, self.entries = fields[:6]
        self.ctx = ref.context(
            self.task, self.cohort, self.attempt, self.manifest, self.models, self.entries
        )
        identities = [self.identity(number) for number in range(transcript.CLIENTS)]
        self.index = {
            number: [entry[0] for entry in self.entries].index(key)
            for number, key in enumerate(identities)
        }
        self.number = {index: number for number, index in self.index.items()}

    def identity(self, number: int) -> bytes:
        seed = unhex(self.data["devices"][number]["identity_seed"])
        return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()

    def secret(self, index: int, name: str) -> bytes:
        return unhex(self.data["devices"][self.number[index]][name])

    def fields(self, line: dict[str, Any], ctx: bytes) -> list[Any]:
        """The verified fields of a message, signed by whoever must have said it."""
        signed = unhex(line["signed"])
        fields = envelope_verifies(signed, ctx, line["kind"], KINDS[line["kind"]])
        assert fields is not None, line["kind"]
        expected = unhex(self.data["task_key"])
        if line["way"] == "up":
            expected = self.identity(line["device"])
        assert msgspec.msgpack.decode(signed)[1] == expected
        return fields

    def all(self, kind: str) -> dict[int, list[Any]]:
        """Fields of each message of a kind, by roster index of the device."""
        ctx = b"" if kind in ("Advert", "Roster") else self.ctx
        return {
            self.index[line["device"]]: self.fields(line, ctx)
            for line in self.data["messages"]
            if line["kind"] == kind
        }

    def pair_seed(self, first: int, second: int) -> bytes:
        sealer = ref.sealer(first, second)
        other = second if sealer == first else first
        keys = self.entries[sealer][0], self.entries[other][0]
        return ref.kdf(self.secret(sealer, "mask_secret"), "pair seed", self.ctx, *keys)


def levels(name: str) -> range:
    """Removable parts of the noise in a transcript's task."""
    return range(len(transcript.REMOVABLE_DROPS.get(name, ())))


exchanges = pytest.mark.parametrize("name", transcript.NAMES)


@exchanges
def test_every_message_is_signed_in_its_context_and_every_device_has_one_roster(name: str) -> None:
    exchange = Exchange(name)
    manifest = unhex(exchange.data["manifest"])
    assert exchange.manifest == ref.labelled("manifest", manifest)
    assert [entry[0] for entry in exchange.entries] == sorted(e[0] for e in exchange.entries)
    for line in exchange.data["messages"]:
        exchange.fields(line, b"" if line["kind"] == "Roster" else exchange.ctx)
    for index, roster in exchange.all("Roster").items():
        assert roster[5] == exchange.entries
        assert roster[6] == index
        assert ref.certified(roster[5], roster[8], {unhex(exchange.data["partner_key"])})
        for other, advert in roster[7]:
            assert exchange.entries[other][1] == ref.labelled("advert", advert)
    for number, advert in enumerate(exchange.data["adverts"]):
        index = exchange.index[number]
        fields = envelope_verifies(unhex(advert), b"", "Advert", 1)
        assert fields is not None
        mask_secret = exchange.secret(index, "mask_secret")
        channel_secret = exchange.secret(index, "channel_secret")
        assert fields[5] == ref.hybrid_public(mask_secret, "mask-key")
        assert fields[6] == ref.hybrid_public(channel_secret, "channel-key")
        own_key, self_seed = exchange.identity(number), exchange.secret(index, "self_seed")
        assert fields[7] == ref.labelled("self seed", own_key, self_seed)


@exchanges
def test_devices_that_checked_give_the_name_that_they_alone_can_make(name: str) -> None:
    exchange = Exchange(name)
    for index, fields in exchange.all("Ready").items():
        seed = exchange.secret(index, "identity_seed")
        assert fields == [exchange.ctx, index, ref.pseudonym(seed, exchange.ctx)]


@exchanges
def test_deals_hold_the_pair_seeds_and_shares_of_both_secrets(name: str) -> None:
    exchange = Exchange(name)
    ctx = exchange.ctx
    dealt: dict[int, dict[int, bytes]] = {}
    for sender, (_, deals, commitments) in exchange.all("Deals").items():
        assert len(commitments) == len(levels(name))
        for signed in deals:
            fields = envelope_verifies(signed, ctx, "Deal", 3)
            assert fields is not None
            assert fields[:2] == [ctx, sender]
            recipient, sealed_seed, sealed_shares, hashes = fields[2:6]
            pair = exchange.entries[sender][0], exchange.entries[recipient][0]
            channel = exchange.secret(recipient, "channel_secret")
            both = ref.opened(
                channel, "channel-key", ref.parts("seal", ctx, *pair, b"shares"), sealed_shares
            )
            labels = ("self share", "mask share", *(f"noise share {n}" for n in levels(name)))
            cut = [both[33 * at : 33 * at + 33] for at in range(len(labels))]
            assert b"".join(cut) == both
            for label, share, expected in zip(labels, cut, hashes, strict=True):
                assert ref.labelled(label, ctx, *pair, share) == expected
            dealt.setdefault(sender, {})[recipient] = both
            if ref.sealer(sender, recipient) == sender:
                info = ref.parts("seal", ctx, *pair, b"pair seed")
                seed = ref.opened(
                    exchange.secret(recipient, "mask_secret"), "mask-key", info, sealed_seed
                )
                assert seed == exchange.pair_seed(sender, recipient)
            else:
                assert sealed_seed == b""
    threshold = (transcript.CLIENTS - 1) // 2 + 1
    for sender, held in dealt.items():
        for offset in range(transcript.CLIENTS - threshold):
            few = dict(list(held.items())[offset : offset + threshold])
            for at, secret in ((0, "self_seed"), (33, "mask_secret")):
                value = ref.joined({holder: both[at : at + 33] for holder, both in few.items()})
                assert value == int.from_bytes(exchange.secret(sender, secret), "little")


@exchanges
def test_payloads_are_the_inputs_behind_their_masks_and_the_sum_opens(name: str) -> None:
    exchange = Exchange(name)
    ctx, bits = exchange.ctx, exchange.bits
    members = next(iter(exchange.all("MaskingSet").values()))[1]
    salt = ref.labelled("masking set", ctx, ref.integers(*members))
    total: list[int] = []
    headers = exchange.all("MaskedInput")
    for number, packed in exchange.data["payloads"].items():
        index = exchange.index[int(number)]
        data = exchange.data["devices"][int(number)]["input"]
        values = ref.payload(data, bits, exchange.data["slice_length"])
        terms = [(exchange.secret(index, "self_seed"), 1)]
        terms += [
            (exchange.pair_seed(index, other), 1 if index < other else -1)
            for other in members
            if other != index
        ]
        for seed, sign in terms:
            stream = ref.mask(seed, salt, len(values), bits)
            values = [(v + sign * m) % 2**bits for v, m in zip(values, stream, strict=True)]
        assert ref.packed(values, bits).hex() == packed
        sent = unhex(packed)
        assert headers[index][2:5] == [salt, ref.hashlib.sha256(sent).digest(), len(sent)]
        total = [(a + b) % 2**bits for a, b in zip(total or [0] * len(values), values, strict=True)]
    assert open_sum(exchange, members, salt, total) == exchange.data["sum"]
    chosen = [exchange.data["devices"][n]["input"] for n in exchange.data["survivors"]]
    assert exchange.data["sum"] == [sum(column) for column in zip(*chosen, strict=True)]


def test_noise_seeds_are_opened_where_nobody_dropped_and_nowhere_else() -> None:
    for name in transcript.NAMES:
        exchange = Exchange(name)
        kinds = {kind for _, f in exchange.all("Unmask").items() for _, kind, _ in f[2]}
        assert (2 in kinds) == (name == "noise-taken-off")


def open_sum(exchange: Exchange, members: list[int], salt: bytes, total: list[int]) -> list[int]:
    """The sum from what survivors revealed alone."""
    bits = exchange.bits
    survivors = next(iter(exchange.all("SurvivorSet").values()))[1]
    revealed: dict[tuple[int, int], dict[int, bytes]] = {}
    for holder, fields in exchange.all("Unmask").items():
        for owner, kind, share in fields[2]:
            assert kind in ((0, 2) if owner in survivors else (1,))
            revealed.setdefault((owner, kind), {})[holder] = share
    dealt = exchange.all("Deals")
    for owner, kind in revealed:
        if kind < 2:
            continue
        seed = ref.joined(revealed[owner, kind]).to_bytes(32, "little")
        commitment = ref.labelled(f"noise seed {kind - 2}", exchange.entries[owner][0], seed)
        assert commitment == dealt[owner][2][kind - 2]
    terms: list[tuple[bytes, int]] = []
    for owner in members:
        secret = ref.joined(revealed[owner, 0 if owner in survivors else 1]).to_bytes(32, "little")
        if owner in survivors:
            terms.append((secret, -1))
            continue
        assert secret == exchange.secret(owner, "mask_secret")
        terms += [(exchange.pair_seed(owner, s), -1 if s < owner else 1) for s in survivors]
    for seed, sign in terms:
        stream = ref.mask(seed, salt, len(total), bits)
        total = [(v + sign * m) % 2**bits for v, m in zip(total, stream, strict=True)]
    period = exchange.data["slice_length"] + 1
    assert set(total[::period]) == {len(survivors)}
    return ref.centred([v for at, v in enumerate(total) if at % period], bits)


@exchanges
def test_survivors_confirmed_one_pair_of_sets(name: str) -> None:
    exchange = Exchange(name)
    ctx = exchange.ctx
    members = next(iter(exchange.all("MaskingSet").values()))[1]
    survivors = next(iter(exchange.all("SurvivorSet").values()))[1]
    masking = ref.labelled("masking set", ctx, ref.integers(*members))
    both = [masking, ref.labelled("survivor set", ctx, masking, ref.integers(*survivors))]
    confirmed = exchange.all("Confirmation")
    assert sorted(confirmed) == survivors
    for index, fields in confirmed.items():
        assert fields[:4] == [ctx, index, *both]
    for _, signed in exchange.all("Confirmations").values():
        for confirmation in signed:
            assert envelope_verifies(confirmation, ctx, "Confirmation", 11) is not None


def check_refusal(exchange: Exchange, case: dict[str, Any], roster: list[Any]) -> None:
    """Who refuses a roster says why, in the context of the roster that it was shown."""
    ctx = ref.context(*roster[:6])
    refusal = envelope_verifies(unhex(case["refusal"]), ctx, "Refusal", 16)
    assert refusal is not None
    assert msgspec.msgpack.decode(unhex(case["refusal"]))[1] == exchange.identity(0)
    assert refusal[:3] == [ctx, roster[6], case["reason"]]
    assert refusal[3] == case["entry"]


def test_an_authentic_message_that_breaks_a_rule_ends_the_exchange() -> None:
    """All but two are properly signed by the task key: what refuses them is the rule."""
    exchange, vectors = Exchange("complete"), load("refusals")
    unauthentic: set[str] = set()
    told = 0
    for case in vectors["negative"]:
        kind = case["instead_of"]
        ctx = b"" if kind == "Roster" else exchange.ctx
        signed = unhex(case["signed"])
        fields = envelope_verifies(signed, ctx, kind, KINDS[kind])
        signer = msgspec.msgpack.decode(signed)[1]
        if fields is None or signer != unhex(exchange.data["task_key"]):
            unauthentic.add(case["name"])
            assert case["outcome"] == "refused"
        if case["outcome"] == "answers":
            assert case["reason"] == "Complaint"
        if case["outcome"] == "ends" and kind == "Roster":
            assert fields is not None
            check_refusal(exchange, case, fields)
            told += 1
    assert told >= 15
    assert unauthentic == {"roster-signed-by-a-device", "inbox-before-the-roster"}
    assert sum(case["outcome"] == "ends" for case in vectors["negative"]) >= 35
