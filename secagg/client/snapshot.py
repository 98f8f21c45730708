"""A device's state as bytes and back, for its journal.

A snapshot contains the state's secrets: the driver seals it at rest. The snapshot of
:class:`~secagg.client.states.Uploading` holds no vector; the driver keeps the payload beside it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from secagg.client.events import Failed, Finished
from secagg.client.states import (
    Advertised,
    AwaitingVector,
    Checked,
    Confirmed,
    Shared,
    State,
    Unmasked,
    Uploading,
)
from secagg.errors import LocalProtocolError
from secagg.secret import Secret

_VERSION = 2
_READABLE = (1, 2)  # a snapshot of version 1 lacks graph, models and noise: its cohort had none
_STATES: tuple[type[State], ...] = (
    Advertised,
    Shared,
    Checked,
    AwaitingVector,
    Uploading,
    Confirmed,
    Unmasked,
    Finished,
    Failed,
)


def _reveal(value: Any) -> bytes:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"a snapshot holds no {type(value).__name__}")


def _hide(kind: type[Any], value: Any) -> Any:
    if kind is Secret and isinstance(value, bytes):
        return Secret(value)
    raise TypeError(kind.__name__)  # which msgspec reports as malformed, with the place


_encoder = msgspec.msgpack.Encoder(enc_hook=_reveal)
_decoders = {
    number: msgspec.msgpack.Decoder(kind, strict=True, dec_hook=_hide)
    for number, kind in enumerate(_STATES)
}


def snapshot(state: State) -> bytes:
    """The state as bytes: version byte, phase byte, MessagePack. Contains secrets."""
    return bytes((_VERSION, _STATES.index(type(state)))) + _encoder.encode(state)


def restore(data: bytes) -> State:
    """The state that :func:`snapshot` was given.

    Raises:
        LocalProtocolError: ``snapshot-version`` or ``snapshot-malformed``.
    """
    if not data or data[0] not in _READABLE:
        raise LocalProtocolError(
            "snapshot-version",
            "The snapshot was written by another version.",
            expected=_READABLE,
            found=data[0] if data else None,
            remedy="Discard it; the device reports in anew.",
        )
    decoder = _decoders.get(data[1]) if len(data) > 1 else None
    if decoder is None:
        raise LocalProtocolError("snapshot-malformed", "The snapshot names no known phase.")
    try:
        state: State = decoder.decode(data[2:])
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(
            "snapshot-malformed", f"The snapshot does not parse: {type(error).__name__}."
        ) from error
    return state
