"""The messages of protocol 1 and their frame.

A frame is: version byte, kind byte, body (MessagePack array, strict). A device or the aggregator
signs a frame *as sent*: ``Signed`` carries the frame, the signer's Ed25519 key and a signature
over (label of the kind, ctx, frame). Nothing is ever re-encoded before it is verified.

Whatever bytes come, :func:`decode` and :func:`verify` either return or raise
:class:`RemoteProtocolError`.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
import nacl.exceptions
import nacl.signing

from secagg import limits
from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.ranges import (
    Count,
    Index,
    IndexOrNone,
    ModelIndex,
    PartnerIndex,
    Seconds,
    ShareKind,
    Size,
)


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class ContextMessage(Message, frozen=True):
    """Base of messages that name their exchange. ``ctx``: the 32-byte context of one cohort's."""

    ctx: bytes


Reason = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{1,64}\Z")]


class Certificate(Message, frozen=True):
    """A partner's word that an identity key belongs to one device of its own."""

    identity_key: bytes
    partner_key: bytes
    not_after: Seconds  # Unix seconds
    signature: bytes  # Ed25519 by partner_key over encode_parts("certificate", ...)


class Advert(Message, frozen=True):
    """Step 1. One-use keys of a device that is ready to be summed. Signed without ctx.

    ``trusted``: keys of the partners whose devices this device accepts in its cohort, strictly
    ordered; empty: those of its own partner alone.
    """

    task: str
    manifest_digest: bytes
    model_version: Count
    model_digest: bytes
    certificate: Certificate
    mask_key: bytes
    channel_key: bytes
    self_seed_commitment: bytes
    nonce: bytes
    expires_at: Seconds  # Unix seconds
    trusted: tuple[bytes, ...] = ()


class AdmittedModel(Message, frozen=True):
    """A version of the global model from which devices of the cohort trained."""

    version: Count
    digest: bytes


class RosterEntry(Message, frozen=True):
    """One row of the roster: a device's identity key, the digest of its signed advert, the place
    of its model in ``Roster.models``, and its certificate: the place of its partner in
    ``Roster.partners``, the expiry (Unix seconds) and the partner's signature."""

    identity_key: bytes
    advert_digest: bytes
    model: ModelIndex
    partner: PartnerIndex = 0
    not_after: Seconds = 0
    certificate_signature: bytes = b""


class Roster(Message, frozen=True):
    """Step 2, aggregator to device: the closed cohort, ordered strictly by identity key.

    ``models`` are ordered strictly by version; a synchronous cohort has exactly one.
    ``partners``: keys of the partners that certified the entries, strictly ordered.
    """

    task: str
    cohort: bytes
    attempt: Count
    manifest_digest: bytes
    models: tuple[AdmittedModel, ...]
    entries: tuple[RosterEntry, ...]
    index: Index
    neighbour_adverts: tuple[tuple[Index, bytes], ...]  # (index, signed advert), sorted by index
    partners: tuple[bytes, ...] = ()


class Refusal(ContextMessage, frozen=True):
    """Step 2, device to aggregator: why it refuses the roster, instead of :class:`Deals`.

    ``entry``: roster index of the device that it objects to; -1: none, but to the roster.
    """

    index: Index
    reason: Reason
    entry: IndexOrNone


class Deal(ContextMessage, frozen=True):
    """Step 2, device to neighbour: sealed pair seed (empty unless sealer) and sealed shares.

    The shares are those of the self seed, of the mask secret and of the seed of each removable
    part of the noise, in this order; ``share_hashes``, one per share, let a lying share be named
    later.
    """

    sender: Index
    recipient: Index
    sealed_pair_seed: bytes
    sealed_shares: bytes
    share_hashes: tuple[bytes, ...]


class Deals(ContextMessage, frozen=True):
    """Step 2, device to aggregator: one signed :class:`Deal` per neighbour, sorted by index.

    ``noise_commitments``: to the seed of each removable part of its noise.
    """

    deals: tuple[bytes, ...]
    noise_commitments: tuple[bytes, ...]


class Inbox(ContextMessage, frozen=True):
    """Step 2b, aggregator to device: the signed deals addressed to it."""

    deals: tuple[bytes, ...]


class Ready(ContextMessage, frozen=True):
    """Step 2b, device to aggregator: every deal in the inbox decrypted and checked.

    ``pseudonym``: 32 bytes, the name by which the ledger lists this device in this cohort
    (:func:`secagg.context.pseudonym`).
    """

    index: Index
    pseudonym: bytes = b""


class Complaint(ContextMessage, frozen=True):
    """Step 2b, device to aggregator: these dealers' messages failed, with the signed deals.

    ``pseudonym``: as in :class:`Ready`.
    """

    index: Index
    accused: tuple[Index, ...]
    evidence: tuple[bytes, ...]
    pseudonym: bytes = b""


class MaskingSet(ContextMessage, frozen=True):
    """Step 3, aggregator to device: S, the devices that are ready, as sorted indices."""

    members: tuple[Index, ...]


class MaskedInput(ContextMessage, frozen=True):
    """Step 3, device to aggregator: fixes the masked vector before its first byte leaves.

    ``vector_digest`` is the plain SHA-256 of the ``size_bytes`` packed bytes.
    """

    index: Index
    masking_set_digest: bytes
    vector_digest: bytes
    size_bytes: Size


class SurvivorSet(ContextMessage, frozen=True):
    """Step 4, aggregator to device: U, the devices whose whole vector is in the sum."""

    members: tuple[Index, ...]


class Confirmation(ContextMessage, frozen=True):
    """Step 4, device to aggregator: the S and U that it was shown."""

    index: Index
    masking_set_digest: bytes
    survivor_set_digest: bytes


class Confirmations(ContextMessage, frozen=True):
    """Step 5, aggregator to device: signed confirmations of survivors."""

    confirmations: tuple[bytes, ...]


class RevealedShare(Message, frozen=True):
    """``kind`` 0: share of the owner's self seed (owner in U); 1: of its mask secret; 2 + level:
    of the seed of that removable part of its noise (owner in U)."""

    owner: Index
    kind: ShareKind
    share: bytes


class Unmask(ContextMessage, frozen=True):
    """Step 5, device to aggregator: per neighbour in S the share of its mask secret, or those of
    its self seed and its reconstructed noise seeds; sorted by (owner, kind)."""

    index: Index
    shares: tuple[RevealedShare, ...]


class Receipt(ContextMessage, frozen=True):
    """The sum was released; ``leaf_index`` is the release's place in the ledger."""

    release: Count
    leaf_index: Size


class Abort(Message, frozen=True):
    """The cohort ended without a release. ``cohort`` as in the roster."""

    cohort: bytes
    reason: str


class Signed(Message, frozen=True):
    """A frame as sent, who signed it, and the signature."""

    frame: bytes
    signer: bytes
    signature: bytes


# kind byte, size cap in bytes. A cap for a message with a list counts its largest cohort.
_N = limits.COHORT_MAX
_K = limits.DEGREE_MAX
_REVEALED = 1 + limits.NOISE_LEVELS_MAX  # shares per neighbour
KINDS: dict[type[Message], tuple[int, int]] = {
    Advert: (1, limits.ADVERT_BYTES_MAX),
    Roster: (2, _N * 150 + _K * limits.ADVERT_BYTES_MAX),
    Deal: (3, limits.DEAL_BYTES_MAX),
    Deals: (4, _K * limits.DEAL_BYTES_MAX),
    Inbox: (5, _K * limits.DEAL_BYTES_MAX),
    Ready: (6, limits.SMALL_MESSAGE_BYTES_MAX),
    Complaint: (7, _K * limits.DEAL_BYTES_MAX),
    MaskingSet: (8, _N * 8 + limits.SMALL_MESSAGE_BYTES_MAX),
    MaskedInput: (9, limits.SMALL_MESSAGE_BYTES_MAX),
    SurvivorSet: (10, _N * 8 + limits.SMALL_MESSAGE_BYTES_MAX),
    Confirmation: (11, limits.SMALL_MESSAGE_BYTES_MAX),
    Confirmations: (12, _N * 512),
    Unmask: (13, _K * _REVEALED * 48 + limits.SMALL_MESSAGE_BYTES_MAX),
    Receipt: (14, limits.SMALL_MESSAGE_BYTES_MAX),
    Abort: (15, limits.SMALL_MESSAGE_BYTES_MAX),
    Refusal: (16, limits.SMALL_MESSAGE_BYTES_MAX),
}
FRAME_BYTES_MAX = max(cap for _, cap in KINDS.values())
_SIGNED_OVERHEAD = 128

_M = TypeVar("_M", bound=Message)
_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(kind, strict=True) for kind in (*KINDS, Signed)}
_types = {number: kind for kind, (number, _) in KINDS.items()}


def encode(message: Message) -> bytes:
    """The message's frame: version byte, kind byte, body."""
    number, _ = KINDS[type(message)]
    return bytes((limits.PROTOCOL_VERSION, number)) + _encoder.encode(message)


def decode(frame: bytes, *kinds: type[_M]) -> _M:
    """Parse a frame of one of the given kinds.

    Raises:
        RemoteProtocolError: ``frame-truncated``, ``frame-version``, ``frame-kind``,
            ``frame-too-large`` or ``frame-malformed``.
    """
    if len(frame) < 2:
        raise RemoteProtocolError("frame-truncated", "A frame has at least two bytes.")
    if frame[0] != limits.PROTOCOL_VERSION:
        raise RemoteProtocolError(
            "frame-version",
            "The frame speaks another protocol version.",
            expected=limits.PROTOCOL_VERSION,
            found=frame[0],
        )
    kind = _types.get(frame[1])
    if kind is None or kind not in kinds:
        raise RemoteProtocolError(
            "frame-kind",
            "A message of this kind is not expected here.",
            expected=sorted(k.__name__ for k in kinds),
            found=frame[1] if kind is None else kind.__name__,
        )
    cap = KINDS[kind][1]
    if len(frame) > cap:
        raise RemoteProtocolError(
            "frame-too-large", "The frame is too large.", expected=cap, found=len(frame)
        )
    return _decode_body(frame[2:], kind)  # type: ignore[return-value]


def _decode_body(body: bytes, kind: type[Message]) -> Message:
    try:
        message: Message = _decoders[kind].decode(body)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(
            "frame-malformed", f"{kind.__name__} does not parse: {type(error).__name__}."
        ) from error
    return message


def signature_input(kind: type[Message], ctx: bytes, frame: bytes) -> bytes:
    """What a signature covers: label of the kind, ctx (empty before a roster), frame."""
    return encode_parts("sign " + kind.__name__, ctx, frame)


def sign(message: Message, ctx: bytes, key: nacl.signing.SigningKey) -> bytes:
    """Encode and sign a message; the bytes of a :class:`Signed`."""
    frame = encode(message)
    signature = key.sign(signature_input(type(message), ctx, frame)).signature
    return _encoder.encode(Signed(frame, bytes(key.verify_key), signature))


def signed_size(message: Message) -> int:
    """Bytes of the :class:`Signed` that :func:`sign` makes of a message."""
    key, signature = bytes(limits.IDENTITY_KEY_BYTES), bytes(limits.SIGNATURE_BYTES)
    return len(_encoder.encode(Signed(encode(message), key, signature)))


def peek(signed: bytes, *kinds: type[_M]) -> tuple[_M, Signed]:
    """Parse a :class:`Signed` *without* verifying it: (claimed message, envelope).

    Only for bytes whose origin is known otherwise, e.g. deals inside a verified :class:`Deals`.

    Raises:
        RemoteProtocolError: as :func:`decode`.
    """
    cap = max(KINDS[kind][1] for kind in kinds) + _SIGNED_OVERHEAD
    if len(signed) > cap:
        raise RemoteProtocolError(
            "frame-too-large", "The signed message is too large.", expected=cap, found=len(signed)
        )
    envelope = _decode_body(signed, Signed)
    assert isinstance(envelope, Signed)  # noqa: S101  narrows the type for mypy
    return decode(envelope.frame, *kinds), envelope


def verify(
    signed: bytes, ctx: bytes, *kinds: type[_M], signer: bytes | None = None
) -> tuple[_M, bytes]:
    """Parse a :class:`Signed`, verify it, and return (message, signer's key).

    ``signer``: the key that must have signed; None leaves that check to the caller.

    Raises:
        RemoteProtocolError: as :func:`decode`, or ``signature-invalid`` / ``signer-unexpected``.
    """
    message, envelope = peek(signed, *kinds)
    if signer is not None and envelope.signer != signer:
        raise RemoteProtocolError(
            "signer-unexpected",
            f"{type(message).__name__} was signed by another key.",
            expected=signer.hex(),
            found=envelope.signer.hex(),
        )
    try:
        nacl.signing.VerifyKey(envelope.signer).verify(
            signature_input(type(message), ctx, envelope.frame), envelope.signature
        )
    except (nacl.exceptions.CryptoError, ValueError, TypeError, RuntimeError) as error:
        raise RemoteProtocolError(
            "signature-invalid",
            f"The signature of {type(message).__name__} does not verify.",
            culprit=envelope.signer if signer is not None else None,
        ) from error
    return message, envelope.signer
