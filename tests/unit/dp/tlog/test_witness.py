"""Cosignatures and the witness's decisions, as c2sp.org/tlog-cosignature and tlog-witness say."""

from __future__ import annotations

import base64

import pytest

from dp.errors import LedgerError
from dp.tlog import witness
from dp.tlog.notes import (
    Checkpoint,
    parse_checkpoint,
    parse_verifier,
    sign_checkpoint,
    sign_note,
    split_note,
    verifier_key,
)
from dp.tlog.witness import (
    AddCheckpoint,
    WitnessPolicy,
    WitnessRefusal,
    add_cosignatures,
    consider,
    cosign,
    cosigned_at,
    encode_request,
    parse_request,
    parse_witness,
    witness_key,
)
from secagg.keys import identity_public_key
from secagg.secret import Secret
from tests.kits.nine_leaves import BEFORE, PROOF, ROOT, SIGNED
from tests.kits.said import Case, refused, said
from tests.kits.tasks import VERIFIER
from tests.kits.witnesses import LOG_SEED, ORIGIN, SEEDS, note, request

LOG = parse_verifier(verifier_key(ORIGIN, identity_public_key(LOG_SEED)))
LOGS = {ORIGIN: (LOG,)}
KEYS = [
    witness_key(f"w{number}.example", identity_public_key(seed))
    for number, seed in enumerate(SEEDS)
]

# The examples that the two specifications print.
PUBLISHED_NOTE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5"
    "/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "\u2014 witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJs"
    "X3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
).encode()
PUBLISHED_REQUEST = (
    "old 20852014\n"
    "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
    "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
    "5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n"
    "/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n"
    "\n"
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5"
    "/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "\u2014 example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49"
    "/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=\n"
).encode()


def seen(size: int) -> Checkpoint | None:
    return parse_checkpoint(split_note(note(size))[0]) if size else None


def cosigned(number: int, body: bytes, at: int = 1679315147) -> bytes:
    line = cosign(split_note(body)[0], f"w{number}.example", SEEDS[number], at)
    return add_cosignatures(body, line, [parse_witness(key) for key in KEYS])


def test_the_published_examples_parse() -> None:
    text, (log, witness) = split_note(PUBLISHED_NOTE)
    assert parse_checkpoint(text).size == 20852163
    assert (log.key_id.hex(), witness.key_id.hex()) == ("033de0ae", "8d66cf3f")
    assert int.from_bytes(witness.signature[:8], "big") == 1679315147
    assert len(witness.signature) == 72
    parsed = parse_request(PUBLISHED_REQUEST)
    assert (parsed.old_size, len(parsed.proof)) == (20852014, 4)
    assert encode_request(parsed) == PUBLISHED_REQUEST
    assert len(split_note(parsed.note)[1]) == 2


def test_the_signed_message_is_the_one_of_the_specification() -> None:
    """Signed by hand: header, time and the whole checkpoint, as the specification prints it."""
    text = split_note(PUBLISHED_NOTE)[0]
    message = (
        "cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
        "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )
    line = cosign(text, "w0.example", SEEDS[0], 1679315147)
    (signature,) = split_note(f"{text}\n{line}".encode())[1]
    plain = split_note(sign_note(message, "x", SEEDS[0]))[1][0]
    assert signature.signature[8:] == plain.signature


def test_cosignatures_verify_and_bind_time_text_and_key() -> None:
    whole = cosigned(1, cosigned(0, note(5), 7))
    keys = [parse_witness(key) for key in KEYS]
    assert {key.name: at for key, at in cosigned_at(whole, keys).items()} == {
        "w0.example": 7,
        "w1.example": 1679315147,
    }
    rows = whole.decode().rpartition("\n\n")[2]
    other = f"{split_note(note(6))[0]}\n{rows}".encode()
    assert cosigned_at(other, keys) == {}
    impostor = cosign(split_note(note(5))[0], "w2.example", SEEDS[1], 7)
    assert add_cosignatures(note(5), impostor, keys) == note(5)
    assert add_cosignatures(whole, rows, keys) == whole  # nothing twice


@pytest.mark.parametrize(("needed", "good"), [(1, True), (2, True), (3, False), (None, False)])
def test_m_of_n_witnesses_are_demanded(needed: int | None, good: bool) -> None:
    policy = WitnessPolicy.of(KEYS, needed)
    whole = cosigned(2, cosigned(0, cosigned(0, note(5), 7), 8))
    if good:
        policy.check(whole)
        return
    with pytest.raises(LedgerError) as caught:
        policy.check(whole)
    assert caught.value.reason == "witnesses-missing"


@pytest.mark.parametrize(
    ("keys", "needed", "reason"),
    [
        ([], None, "witness-policy"),
        (KEYS, 0, "witness-policy"),
        (KEYS, 4, "witness-policy"),
        ([*KEYS, KEYS[0]], 2, "witness-policy"),
        ([VERIFIER], 1, "verifier-key"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(
    keys: list[str], needed: int | None, reason: str
) -> None:
    with pytest.raises(LedgerError) as caught:
        WitnessPolicy.of(keys, needed)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("old", "size"), [(0, 0), (0, 5), (5, 5), (5, 9), (8, 9), (1, 2)])
def test_a_log_that_grows_is_cosigned(old: int, size: int) -> None:
    asked = parse_request(encode_request(request(old, size)))
    assert consider(asked, LOGS, seen(old)) == parse_checkpoint(split_note(note(size))[0])


@pytest.mark.parametrize(
    ("asked", "last", "status"),
    [
        (request(5, 9), 6, 409),  # not the latest
        (request(0, 9), 6, 409),  # how a log asks what the witness remembers
        (request(5, 5, b"x"), 5, 409),  # the same size, another root
        (request(5, 9, b"x"), 5, 422),
        (request(5, 9)._replace(proof=()), 5, 422),
        (request(0, 9)._replace(proof=request(5, 9).proof), 0, 422),
        (AddCheckpoint(6, (), note(5)), 6, 400),  # shorter than before
        (AddCheckpoint(0, (), b"nonsense"), 0, 400),
        (AddCheckpoint(0, (), note(5, origin="other.example")), 0, 404),
        (AddCheckpoint(0, (), note(5, seed=SEEDS[0])), 0, 403),
        (AddCheckpoint(0, (), note(5).replace(b"\n5\n", b"\n6\n")), 0, 403),
    ],
)
def test_whatever_does_not_extend_the_log_is_refused(
    asked: AddCheckpoint, last: int, status: int
) -> None:
    with pytest.raises(WitnessRefusal) as caught:
        consider(asked, LOGS, seen(last))
    assert caught.value.status == status


def test_signatures_of_unknown_keys_are_ignored() -> None:
    body = note(5)
    extra = note(5, seed=SEEDS[0]).decode().rpartition("\n\n")[2].encode()
    assert consider(AddCheckpoint(0, (), body + extra), LOGS, None).size == 5


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        b"old 00\n\nx",
        b"old -1\n\nx",
        b"old 1\nAAAA\n\nx",
        b"old 1\n!\n\nx",
        b"size 1\n\nx",
        b"old " + b"9" * 30 + b"\n\nx",
        b"old 1\n" + b"A" * 43 + b"=\n" + (b"A" * 43 + b"=\n") * 63 + b"\nx",
        b"\xff\n\nx",
    ],
)
def test_a_malformed_request_is_refused(body: bytes) -> None:
    with pytest.raises(LedgerError) as caught:
        parse_request(body)
    assert caught.value.reason == "request-malformed"


def test_requests_at_their_limits() -> None:
    note, hashes = b"note\n", tuple(bytes([n]) * 32 for n in range(63))
    request = AddCheckpoint(10**18 - 1, hashes, note)
    body = encode_request(request)
    assert body.startswith(b"old 999999999999999999\n" + base64.b64encode(bytes(32)) + b"\n")
    assert body.endswith(b"\n\nnote\n")
    assert parse_request(body) == request
    assert parse_request(b"old 0\n\n") == AddCheckpoint(0, (), b"")
    filled = body + b"x" * ((64 << 10) - len(body))
    assert parse_request(filled).note.startswith(note)
    for broken in (
        filled + b"x",
        encode_request(request._replace(old_size=10**18)),
        encode_request(request._replace(proof=(*hashes, bytes(32)))),
        encode_request(request._replace(proof=(bytes(31),))),
        b"old 0\n",
        b"old  0\n\n",
        b"Old 0\n\n",
        "old \u0665\n\n".encode(),
    ):
        with pytest.raises(LedgerError, match="request-malformed"):
            parse_request(broken)


def test_the_latest_cosignature_counts_and_a_key_is_of_its_own_kind() -> None:
    key, text = parse_witness(KEYS[0]), split_note(note(5))[0]
    assert witness_key("w0.example", identity_public_key(SEEDS[0])) == KEYS[0]
    assert KEYS[0] == verifier_key("w0.example", key.public_key, b"\x04")
    lines = [cosign(text, "w0.example", SEEDS[0], at) for at in (200, 100, 2**63 - 1)]
    whole = note(5) + "".join(lines[:2]).encode()
    assert cosigned_at(whole, [key]) == {key: 200}
    assert cosigned_at(note(5) + lines[2].encode(), [key]) == {key: 2**63 - 1}
    assert cosigned_at(note(5) + cosign(text, "w0.example", SEEDS[0], 2**63).encode(), [key]) == {}


WITNESS = witness.witness_key("w.example", identity_public_key(Secret(bytes(32))))


REFUSED = {
    "a witness listed twice": Case(
        lambda: WitnessPolicy.of([WITNESS, WITNESS], 1), "witness-policy"
    ),
    "more witnesses than there are": Case(
        lambda: WitnessPolicy.of([WITNESS], 2), "witness-policy", "1 to 1", 2
    ),
    "no cosignature": Case(
        lambda: WitnessPolicy.of([WITNESS]).check(SIGNED),
        "witnesses-missing",
        "1 of ['w.example']",
        [],
    ),
    "a request of no form": Case(lambda: witness.parse_request(b""), "request-malformed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)


def asked_for(old: int, note: bytes, proof: list[bytes] | None = None) -> AddCheckpoint:
    return AddCheckpoint(old, tuple(PROOF if proof is None else proof), note)


def head(size: int, root: bytes = ROOT, origin: str = ORIGIN, seed: Secret = LOG_SEED) -> bytes:
    return sign_checkpoint(Checkpoint(origin, size, root), seed)


LAST = Checkpoint(ORIGIN, 5, BEFORE)


@pytest.mark.parametrize(
    ("asked", "status", "reason", "expected", "found"),
    [
        (asked_for(5, b"x"), 400, "note-malformed", None, None),
        (asked_for(5, head(9, origin="o")), 404, "log-unknown", None, "o"),
        (asked_for(5, head(9, seed=Secret(bytes(32)))), 403, "log-signature", None, None),
        (asked_for(5, head(4)), 400, "log-rolled-back", 5, 4),
        (asked_for(4, head(9)), 409, "old-size", 5, 4),
        (asked_for(5, head(5)), 409, "log-forked", BEFORE.hex(), ROOT.hex()),
        (asked_for(5, head(9), []), 422, "log-forked", None, None),
    ],
)
def test_a_witness_says_why_it_does_not_sign(
    asked: AddCheckpoint, status: int, reason: str, expected: object, found: object
) -> None:
    with pytest.raises(WitnessRefusal) as caught:
        witness.consider(asked, LOGS, LAST)
    assert said(caught.value) == (reason, expected, found)
    assert caught.value.status == status
    assert WitnessRefusal("a-reason", "A sentence.").status == 400
