"""Whatever bytes come, they parse and verify, or RemoteProtocolError is raised and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import msgspec
import pytest

from secagg import keys, limits, messages
from secagg.errors import RemoteProtocolError
from secagg.messages import (
    KINDS,
    Abort,
    AdmittedModel,
    Advert,
    Certificate,
    Complaint,
    Confirmation,
    Confirmations,
    Deal,
    Deals,
    Inbox,
    MaskedInput,
    MaskingSet,
    Message,
    Ready,
    Receipt,
    Refusal,
    RevealedShare,
    Roster,
    RosterEntry,
    Signed,
    SurvivorSet,
    Unmask,
    decode,
    encode,
    peek,
    sign,
    signature_input,
    verify,
)
from secagg.secret import Secret
from tests.kits.said import Case, refused

CTX, OTHER_CTX = b"\x11" * 32, b"\x12" * 32
KEY, OTHER_KEY = (keys.signing_key(Secret(bytes([number]) * 32)) for number in (1, 2))
PUBLIC = bytes(KEY.verify_key)
HASH = b"\x22" * 32
CERTIFICATE = Certificate(PUBLIC, HASH, 1_800_000_000, b"\x33" * 64)
SAMPLES: tuple[Message, ...] = (
    Advert(
        "task",
        HASH,
        3,
        HASH,
        CERTIFICATE,
        b"m" * 1216,
        b"c" * 1216,
        HASH,
        b"n" * 32,
        1_800_000_000,
        (HASH, PUBLIC),
    ),
    Roster(
        "task",
        HASH,
        0,
        HASH,
        (AdmittedModel(0, HASH),),
        (
            RosterEntry(PUBLIC, HASH, 0, 0, 1_800_000_000, b"\x33" * 64),
            RosterEntry(HASH, PUBLIC, 0, 0, 1_800_000_000, b"\x33" * 64),
        ),
        1,
        ((0, b"signed advert"),),
        (HASH,),
    ),
    Deal(CTX, 0, 1, b"", b"sealed", (HASH, HASH)),
    Deals(CTX, (b"deal", b"other deal"), (HASH,)),
    Inbox(CTX, (b"deal",)),
    Ready(CTX, 4, HASH),
    Complaint(CTX, 4, (1, 2), (b"deal", b"deal"), HASH),
    MaskingSet(CTX, (0, 1, 9_999)),
    MaskedInput(CTX, 2, HASH, HASH, 12_345),
    SurvivorSet(CTX, ()),
    Confirmation(CTX, 2, HASH, HASH),
    Confirmations(CTX, (b"signed",)),
    Unmask(CTX, 2, (RevealedShare(0, 0, bytes(33)), RevealedShare(1, 1, bytes(33)))),
    Receipt(CTX, 7, 21),
    Abort(HASH, "too-few-survivors"),
    Refusal(CTX, 3, "partner-unknown", 1),
)
ALL = tuple(KINDS)
REASONS = {
    "frame-truncated",
    "frame-version",
    "frame-kind",
    "frame-too-large",
    "frame-malformed",
    "signer-unexpected",
    "signature-invalid",
}
by_kind = pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)


def outcome(use: Callable[[], object]) -> str | None:
    """The stable reason of the refusal, None if accepted; any other exception fails the test."""
    reason = None
    try:
        use()
    except RemoteProtocolError as error:
        reason = error.reason
    assert reason is None or reason in REASONS
    return reason


def frame(message: Message, *replacement: object, at: int = -1) -> bytes:
    """The message's frame, field ``at`` replaced by any value that MessagePack can hold."""
    fields = list(msgspec.structs.astuple(message))
    if replacement:
        fields[at] = replacement[0]
    return bytes((limits.PROTOCOL_VERSION, KINDS[type(message)][0])) + msgspec.msgpack.encode(
        fields
    )


# -- the frame ---------------------------------------------------------------------------------


def test_there_is_a_sample_of_every_kind() -> None:
    assert {type(sample) for sample in SAMPLES} == set(KINDS)


def test_kind_numbers_are_frozen() -> None:
    assert {kind.__name__: number for kind, (number, _) in KINDS.items()} == {
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


@by_kind
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode(encode(message), type(message)) == message
    assert decode(encode(message), *ALL) == message
    assert frame(message) == encode(message)


def test_a_frame_is_version_kind_and_an_array() -> None:
    assert (
        encode(Receipt(b"\xaa\xbb", 7, 300)).hex() == "010e" + "93" + "c402aabb" + "07" + "cd012c"
    )


@by_kind
def test_another_version_is_refused(message: Message) -> None:
    body = encode(message)[1:]
    for version in range(256):
        expected = None if version == limits.PROTOCOL_VERSION else "frame-version"
        assert outcome(lambda v=version: decode(bytes([v]) + body, *ALL)) == expected


@by_kind
def test_a_kind_that_is_not_due_is_refused(message: Message) -> None:
    others = tuple(kind for kind in ALL if kind is not type(message))
    assert outcome(lambda: decode(encode(message), *others)) == "frame-kind"


@by_kind
def test_unknown_kinds_are_refused(message: Message) -> None:
    body = encode(message)[2:]
    for number in (0, *range(17, 256)):
        head = bytes((limits.PROTOCOL_VERSION, number))
        assert outcome(lambda h=head: decode(h + body, *ALL)) == "frame-kind"


@by_kind
def test_a_frame_has_a_size_cap(message: Message) -> None:
    cap = KINDS[type(message)][1]
    head = encode(message)[:2]
    assert outcome(lambda: decode(head + bytes(cap - 1), *ALL)) == "frame-too-large"
    assert outcome(lambda: decode(head + bytes(cap - 2), *ALL)) == "frame-malformed"


# -- fuzz: the body ----------------------------------------------------------------------------


@by_kind
def test_every_truncation_is_refused(message: Message) -> None:
    whole = encode(message)
    for size in range(len(whole)):
        reason = outcome(lambda s=size: decode(whole[:s], *ALL))
        assert reason == ("frame-truncated" if size < 2 else "frame-malformed")


@by_kind
def test_bytes_behind_the_body_are_refused(message: Message) -> None:
    for tail in (b"\0", b"\xc0", b"\x90", encode(message)):
        assert outcome(lambda t=tail: decode(encode(message) + t, *ALL)) == "frame-malformed"


@by_kind
def test_a_field_more_or_less_is_refused(message: Message) -> None:
    head, fields = encode(message)[:2], list(msgspec.structs.astuple(message))
    defaults = msgspec.structs.fields(message)[-1].default is not msgspec.NODEFAULT
    fewer = fields[: -2 if defaults else -1]  # without a last field it is an older version's
    for changed in ([], fewer, fields[1:], [*fields, 0], [*fields, None], [fields]):
        body = msgspec.msgpack.encode(changed)
        assert outcome(lambda b=body: decode(head + b, *ALL)) == "frame-malformed"


class _Raw(msgspec.Struct):
    """Nothing in common with any field."""

    x: int = 0


WRONG_VALUES: tuple[object, ...] = (
    None,
    True,
    -1.5,
    float("nan"),
    [None],
    [[[]]],
    {},
    {"x": 1},
    {1: b"x"},
    _Raw(),
    msgspec.msgpack.Ext(1, b"x"),
    msgspec.msgpack.Ext(-1, bytes(4)),
    [b"x", "x"],
    [[0, 1, 2, 3]],
)


@by_kind
def test_fields_of_other_types_are_refused(message: Message) -> None:
    for at in range(len(msgspec.structs.astuple(message))):
        for value in WRONG_VALUES:
            changed = frame(message, value, at=at)
            assert outcome(lambda c=changed: decode(c, *ALL)) == "frame-malformed"


@by_kind
def test_bytes_text_and_integers_are_not_confused(message: Message) -> None:
    for at, value in enumerate(msgspec.structs.astuple(message)):
        for other in (b"bytes", "text", 17):
            if type(other) is not type(value):
                changed = frame(message, other, at=at)
                assert outcome(lambda c=changed: decode(c, *ALL)) == "frame-malformed"


# MessagePack by hand: text that is not UTF-8, lengths that lie, depth, reserved bytes.
HOSTILE = (
    b"\xa2\xff\xfe",
    b"\xa1\x80",
    b"\xa3\xed\xa0\x80",
    b"\xd9\x02\xc3\x28",
    b"\xda\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc4\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc6\x7f\xff\xff\xff" + bytes(50),
    b"\xdc\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdd\x7f\xff\xff\xff" + b"\xc0" * 50,
    b"\xdf\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xc7\x04\xff" + bytes(4),
    b"\xd6\xff" + b"\xff" * 4,
    b"\xd7\xff" + b"\xff" * 8,
    b"\xc1",
    b"\xca\x7f\xc0\x00\x00",
    b"\xcb\x7f\xf0" + bytes(6),
    b"\x91" * 3_000,
    b"\x81\xa1x" * 1_000,
    b"\x81" * 3_000,
    b"\x81\xc4\x01x\xc0",
    b"\x81\x90\xc0",
)


@by_kind
def test_hostile_messagepack_is_refused_in_every_field(message: Message) -> None:
    fields = [msgspec.msgpack.encode(field) for field in msgspec.structs.astuple(message)]
    head = encode(message)[:2] + bytes((0x90 | len(fields),))
    for raw in HOSTILE:
        for at in range(len(fields)):
            body = b"".join([*fields[:at], raw, *fields[at + 1 :]])
            outcome(lambda b=body: decode(head + b, *ALL))
            if raw[:1] != b"\xcf":  # an integer of 64 bits is an integer
                assert outcome(lambda b=body: decode(head + b, *ALL)) == "frame-malformed"
        assert outcome(lambda r=raw: decode(encode(message)[:2] + r, *ALL)) == "frame-malformed"


def mutations(whole: bytes, source: random.Random, count: int) -> Iterator[bytes]:
    """Seeded damage of the kinds that networks and attackers do."""
    for _ in range(count):
        changed = bytearray(whole)
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(len(changed)) if changed else 0
            match source.randrange(5):
                case 0:
                    changed[at : at + 1] = bytes([source.randrange(256)])
                case 1:
                    del changed[at : at + source.randrange(1, 9)]
                case 2:
                    changed[at:at] = source.randbytes(source.randrange(1, 9))
                case 3:
                    changed[at:at] = changed[: source.randrange(1, 40)]
                case _:
                    changed[at : at + 1] = source.choice(HOSTILE)
        yield bytes(changed)


@by_kind
def test_damaged_frames_parse_or_are_refused(message: Message) -> None:
    whole, source = encode(message), random.Random(type(message).__name__)
    for changed in mutations(whole, source, 400):
        outcome(lambda c=changed: decode(c, *ALL))
        outcome(lambda c=changed: decode(whole[:2] + c, *ALL))


@by_kind
def test_damaged_signed_messages_never_verify(message: Message) -> None:
    """Anything that still verifies is a re-encoding of the same envelope, with the same frame."""
    whole, source = sign(message, CTX, KEY), random.Random(type(message).__name__)
    for changed in mutations(whole, source, 200):
        if outcome(lambda c=changed: verify(c, CTX, *ALL)) is None:
            assert verify(changed, CTX, *ALL) == (message, PUBLIC)


def test_random_bytes_are_refused() -> None:
    source = random.Random(5)
    for _ in range(3_000):
        noise = source.randbytes(source.randrange(200))
        for head in (b"", bytes((1, source.randrange(1, 16)))):
            assert outcome(lambda h=head, n=noise: decode(h + n, *ALL))
        assert outcome(lambda n=noise: verify(n, CTX, *ALL))
        assert outcome(lambda n=noise: peek(n, *ALL))


# -- signatures --------------------------------------------------------------------------------


@by_kind
def test_what_was_signed_verifies(message: Message) -> None:
    signed = sign(message, CTX, KEY)
    assert verify(signed, CTX, type(message)) == (message, PUBLIC)
    assert verify(signed, CTX, *ALL, signer=PUBLIC) == (message, PUBLIC)
    assert len(signed) <= len(encode(message)) + 128


@by_kind
def test_a_signature_counts_in_its_context_only(message: Message) -> None:
    signed = sign(message, CTX, KEY)
    for ctx in (OTHER_CTX, b"", CTX[:31], CTX + b"\0"):
        assert outcome(lambda c=ctx: verify(signed, c, *ALL)) == "signature-invalid"


@by_kind
def test_a_message_of_another_signer_is_refused(message: Message) -> None:
    other = bytes(OTHER_KEY.verify_key)
    signed = sign(message, CTX, KEY)
    assert outcome(lambda: verify(signed, CTX, *ALL, signer=other)) == "signer-unexpected"
    _, envelope = peek(signed, *ALL)
    claimed = msgspec.msgpack.encode(Signed(envelope.frame, other, envelope.signature))
    assert outcome(lambda: verify(claimed, CTX, *ALL, signer=other)) == "signature-invalid"


def test_a_signature_of_one_kind_does_not_count_for_another() -> None:
    """MaskingSet and SurvivorSet have the same fields, so only the labels tell them apart."""
    _, envelope = peek(sign(MaskingSet(CTX, (0, 1)), CTX, KEY), MaskingSet)
    survivors = encode(SurvivorSet(CTX, (0, 1)))
    assert survivors[2:] == envelope.frame[2:]
    forged = msgspec.msgpack.encode(Signed(survivors, envelope.signer, envelope.signature))
    assert outcome(lambda: verify(forged, CTX, SurvivorSet)) == "signature-invalid"
    assert signature_input(MaskingSet, CTX, b"x") != signature_input(SurvivorSet, CTX, b"x")


@pytest.mark.parametrize(
    "signer", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31), b"\xff" * 32]
)
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64])
def test_malformed_signers_and_signatures_are_refused(signer: bytes, signature: bytes) -> None:
    forged = msgspec.msgpack.encode(Signed(encode(Ready(CTX, 1)), signer, signature))
    assert outcome(lambda: verify(forged, CTX, Ready)) == "signature-invalid"
    assert outcome(lambda: verify(forged, CTX, Ready, signer=signer)) == "signature-invalid"


def test_the_signer_is_blamed_only_where_the_caller_knows_it() -> None:
    """An envelope can claim anybody's key, so a bad signature alone accuses nobody."""
    _, envelope = peek(sign(Ready(CTX, 1), CTX, KEY), Ready)
    forged = msgspec.msgpack.encode(Signed(envelope.frame, PUBLIC, bytes(64)))
    with pytest.raises(RemoteProtocolError) as caught:
        verify(forged, CTX, Ready)
    assert caught.value.culprit is None


@by_kind
def test_a_signed_message_has_a_size_cap(message: Message) -> None:
    cap = KINDS[type(message)][1]
    huge = msgspec.msgpack.encode(Signed(bytes(cap), PUBLIC, bytes(200)))
    assert outcome(lambda: verify(huge, CTX, type(message))) == "frame-too-large"
    assert outcome(lambda: peek(huge, type(message))) == "frame-too-large"


def test_the_largest_roster_fits_its_cap() -> None:
    """10,000 entries of the most partners and the highest degree; about 5.0 MB."""
    last = limits.PARTNERS_MAX - 1
    entries = tuple(
        RosterEntry(number.to_bytes(32, "big"), HASH, 64, last, 2**53 - 1, b"s" * 64)
        for number in range(limits.COHORT_MAX)
    )
    partners = tuple(number.to_bytes(32, "big") for number in range(limits.PARTNERS_MAX))
    advert = sign(msgspec.structs.replace(SAMPLES[0], trusted=partners), b"", KEY)
    assert len(advert) <= limits.ADVERT_BYTES_MAX
    adverts = tuple((number, advert) for number in range(limits.DEGREE_MAX))
    roster = Roster("task", HASH, 0, HASH, (AdmittedModel(0, HASH),), entries, 0, adverts, partners)
    assert decode(encode(roster), Roster) == roster


DEVICE = Secret(b"d" * 32)
DEVICE_KEY = keys.identity_public_key(DEVICE)
PARTNER_KEY = keys.identity_public_key(Secret(b"p" * 32))
FRAME = messages.encode(Ready(b"c", 1))
SIGNED = messages.sign(Ready(b"c", 1), b"c", keys.signing_key(DEVICE))
READY_MAX = messages.KINDS[Ready][1]
REFUSED = {
    "half a frame": Case(lambda: messages.decode(b"\x01", Ready), "frame-truncated"),
    "a frame of another version": Case(
        lambda: messages.decode(b"\x02\x06", Ready), "frame-version", 1, 2
    ),
    "a frame of another kind": Case(
        lambda: messages.decode(FRAME, Receipt, Abort), "frame-kind", ["Abort", "Receipt"], "Ready"
    ),
    "a frame of no kind": Case(
        lambda: messages.decode(b"\x01\xff", Ready), "frame-kind", ["Ready"], 255
    ),
    "a frame too large": Case(
        lambda: messages.decode(FRAME + bytes(READY_MAX), Ready),
        "frame-too-large",
        READY_MAX,
        len(FRAME) + READY_MAX,
    ),
    "a signed message too large": Case(
        lambda: messages.peek(bytes(READY_MAX + 129), Ready),
        "frame-too-large",
        READY_MAX + 128,
        READY_MAX + 129,
    ),
    "a body that does not parse": Case(
        lambda: messages.decode(FRAME[:-1], Ready), "frame-malformed"
    ),
    "a message signed by another": Case(
        lambda: messages.verify(SIGNED, b"c", Ready, signer=PARTNER_KEY),
        "signer-unexpected",
        PARTNER_KEY.hex(),
        DEVICE_KEY.hex(),
    ),
    "a signature for another exchange, of a known signer": Case(
        lambda: messages.verify(SIGNED, b"d", Ready, signer=DEVICE_KEY),
        "signature-invalid",
        culprit=DEVICE_KEY,
    ),
    "a signature for another exchange, of whomever": Case(
        lambda: messages.verify(SIGNED, b"d", Ready), "signature-invalid"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])
