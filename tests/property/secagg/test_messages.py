"""The wire as laws: every message survives it; any bytes parse or are refused."""

from __future__ import annotations

import typing
from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from secagg import keys
from secagg.errors import RemoteProtocolError
from secagg.messages import KINDS, Message, Signed, decode, encode, peek, sign, verify
from secagg.secret import Secret

KEY = keys.signing_key(Secret(b"\x01" * 32))
ALL = tuple(KINDS)


def outcome(use: Callable[[], object]) -> str | None:
    """The stable reason of the refusal, None if accepted; any other exception fails the test."""
    try:
        use()
    except RemoteProtocolError as error:
        return error.reason
    return None


def values(annotation: object) -> st.SearchStrategy[object]:
    """Any value of a field's type within its range, small enough for every cap."""
    if typing.get_origin(annotation) is typing.Annotated:
        kind, meta = typing.get_args(annotation)
        if kind is str:
            return st.from_regex(meta.pattern, fullmatch=True)
        least = meta.ge if meta.ge is not None else meta.gt + 1
        most = meta.le if meta.le is not None else meta.lt - 1
        return st.integers(least, most)
    if annotation is bytes:
        return st.binary(max_size=40)
    if annotation is str:
        return st.text(max_size=10)
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)
        if inner[-1] is Ellipsis:
            return st.lists(values(inner[0]), max_size=4).map(tuple)
        return st.tuples(*map(values, inner))
    assert isinstance(annotation, type)
    assert issubclass(annotation, Message)
    return messages(annotation)


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, *(values(hints[name]) for name in kind.__struct_fields__))


ANY_MESSAGE = st.one_of([messages(kind) for kind in ALL])
ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(ANY_MESSAGE)
def test_every_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message), type(message)) == message


@given(ANY_MESSAGE, st.binary(max_size=32))
def test_every_signed_message_verifies_in_its_context(message: Message, ctx: bytes) -> None:
    signed = sign(message, ctx, KEY)
    assert verify(signed, ctx, *ALL) == (message, bytes(KEY.verify_key))
    assert outcome(lambda: verify(signed, ctx + b"\0", *ALL)) == "signature-invalid"


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    outcome(lambda: decode(data, *ALL))
    outcome(lambda: peek(data, *ALL))
    outcome(lambda: verify(data, b"", *ALL))


@given(st.integers(1, 15), ANY_VALUE)
def test_any_well_formed_messagepack_parses_or_is_refused(number: int, body: object) -> None:
    frame = bytes((1, number)) + msgspec.msgpack.encode(body)
    reason = outcome(lambda: decode(frame, *ALL))
    assert reason in (None, "frame-malformed")
    if reason is None:
        message = decode(frame, *ALL)
        assert decode(encode(message), *ALL) == message


@given(ANY_MESSAGE, st.data())
def test_a_changed_frame_does_not_verify(message: Message, data: st.DataObject) -> None:
    _, envelope = peek(sign(message, b"ctx", KEY), *ALL)
    at = data.draw(st.integers(0, len(envelope.frame) - 1))
    change = data.draw(st.integers(1, 255))
    frame = bytearray(envelope.frame)
    frame[at] ^= change
    forged = msgspec.msgpack.encode(Signed(bytes(frame), envelope.signer, envelope.signature))
    assert outcome(lambda: verify(forged, b"ctx", *ALL)) is not None
