"""What device and aggregator say to each other over HTTP, besides protocol messages.

Protocol messages travel as their own bytes (``application/octet-stream``); these structures
travel as JSON, bytes in base64 (msgspec's rule).
"""

from __future__ import annotations

from typing import Any

import msgspec

from secagg.messages import Certificate
from secagg.ranges import Count, LeafOrNone, Seconds, Size, Status


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServerInfo(_Body, frozen=True):
    """``GET /v1/server``: the keys that a partner copies into its enrolment bundles."""

    task_key: bytes
    ledger_verifier: str


class ModelVersion(_Body, frozen=True):
    """A global vector: float32, length ``manifest.data_length`` of the adapter, safetensors.

    ``leaf_index``: of the ledger's record that made it; -1 if the aggregator does not know.
    """

    version: Count
    digest: bytes  # SHA-256 of the file
    size_bytes: Size
    opened_at: float  # Unix seconds at which this version became current
    leaf_index: LeafOrNone = -1


class Revocations(_Body, frozen=True):
    """The newest revocation list of a partner; ``GET /v1/revocations/{digest}`` brings it."""

    partner: bytes
    number: Size
    digest: bytes
    size_bytes: Size


class Offer(_Body, frozen=True):
    """``GET /v1/tasks/{task}/offer``: what a device may do now.

    ``manifest_signature``: Ed25519 by the task key over ``encode_parts("manifest", manifest)``.
    ``state``: ``open``, ``paused`` or ``finished``. ``releases``: releases so far.
    ``revocations``: of the task's partners that have a list.
    """

    manifest: bytes
    manifest_signature: bytes
    state: str
    releases: Count
    model: ModelVersion
    now: float
    revocations: tuple[Revocations, ...] = ()


class AdvertAccepted(_Body, frozen=True):
    """Answer to ``POST /v1/adverts``. ``session`` is hex of the signed advert's digest."""

    session: str


class Mail(_Body, frozen=True):
    """Answer to ``GET /v1/sessions/{session}/messages?after=N&wait_s=S``.

    Signed aggregator messages in order; the first has sequence number ``after`` + 1.
    """

    messages: tuple[bytes, ...]


class UploadState(_Body, frozen=True):
    """Answer to ``GET`` and ``PUT /v1/sessions/{session}/vector``."""

    received_bytes: Size
    complete: bool


PROBLEM_TYPE = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every error's body: a problem document (RFC 9457). ``reason`` is stable.

    ``type``: ``urn:secagg:problem:`` and the reason. ``title``: the reason in words. ``detail``: a
    sentence with both values. ``message``: the same; readers older than problem documents look
    for it. ``expected``, ``found``: the two values, where there are two. ``remedy``: the way out.
    ``request_id``: under which the operator's log has the request.
    A reader ignores members that it does not know; of an older service it gets three.
    """

    reason: str
    message: str
    remedy: str | None = None
    type: str = "about:blank"
    title: str = ""
    status: Status = 0
    detail: str = ""
    expected: Any = None
    found: Any = None
    request_id: str | None = None


class EnrolmentBundle(_Body, frozen=True):
    """What a partner app ships or fetches: identity, certificate and whom to trust."""

    server: str  # base URL
    task_key: bytes
    ledger_verifier: str
    identity_seed: bytes  # Ed25519 seed of the device; the file is as secret as the device
    certificate: Certificate


class AccessToken(_Body, frozen=True):
    """A device's own bearer token: base64url of this as MessagePack.

    Signed by the identity key over ``encode_parts("access", audience, expires_at as 8 bytes
    little-endian)``; ``audience`` is the aggregator's task key. Valid for at most ten minutes.
    """

    certificate: Certificate
    expires_at: Seconds
    signature: bytes


ACCESS_TOKEN_MAX_S = 600
