"""Who may call: devices by a token that their own key signs, operators by one shared token."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable

from aggregator.errors import Kind, Refusal
from aggregator.partners import Partners, partner_removed
from secagg.access_token import verify_access_token
from secagg.errors import RemoteProtocolError

_BUCKETS_MAX = 100_000  # identities, or addresses, that are remembered
_WRONG_MAX = 10  # wrong tokens of one address at once
_WRONG_S = 6.0  # seconds until it may show one more


class DeviceAccess:
    """Verifies device tokens against the partners' keys; limits each device's request rate."""

    def __init__(
        self,
        audience: bytes,
        partners: Partners,
        clock: Callable[[], float],
        requests_per_s: float,
        burst: int,
    ) -> None:
        self._audience = audience
        self._partners = partners
        self._clock = clock
        self._rate = requests_per_s
        self._burst = burst
        self._buckets: dict[bytes, tuple[float, float]] = {}

    async def identity(self, token: str) -> bytes:
        """The Ed25519 identity key (32 bytes) of the device that made this token.

        Raises:
            Refusal: with the token's fault, ``partner-removed`` or ``rate-limited``.
        """
        try:
            identity = await self._verified(token)
        except RemoteProtocolError as error:
            if error.reason == "partner-unknown":
                raise self._not_certified(str(error.found)) from error
            raise Refusal(
                Kind.UNAUTHENTICATED, error.reason, error.message, remedy=error.remedy
            ) from error
        self._spend(identity)
        return identity

    async def _verified(self, token: str) -> bytes:
        """As ``verify_access_token``, with what the database says of a partner not known here."""
        now = int(self._clock())
        for again in (True, False):
            try:
                return verify_access_token(token, self._audience, self._partners.admitted, now)
            except RemoteProtocolError as error:
                if error.reason != "partner-unknown" or not again:
                    raise
                if not await self._partners.added_elsewhere(bytes.fromhex(str(error.found))):
                    raise
        raise AssertionError("the second look either returns or raises")

    def _not_certified(self, partner: str) -> Refusal:
        if bytes.fromhex(partner) in self._partners.removed:
            return partner_removed()
        return Refusal(
            Kind.UNAUTHENTICATED,
            "partner-unknown",
            f"The device was certified by {partner}, which is not a partner of this service.",
            remedy="Use a bundle of this service, or ask its operator to add the partner "
            "(secagg partner add).",
        )

    def _spend(self, identity: bytes) -> None:
        now = time.monotonic()
        tokens, before = self._buckets.pop(identity, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - before) * self._rate)
        allowed = tokens >= 1
        self._buckets[identity] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _BUCKETS_MAX:
            del self._buckets[next(iter(self._buckets))]  # the longest silent: its bucket is full
        if not allowed:
            raise Refusal(
                Kind.TOO_MANY,
                "rate-limited",
                "This device calls too often.",
                expected=f"{self._rate} requests/s",
                remedy="Wait as long as Retry-After says.",
                retry_after_s=1,
            )


class OperatorAccess:
    """Compares the operator's token in constant time; keeps only its SHA-256.

    An address that shows many wrong tokens is told to wait. Others may share it, so the right one
    is always let in: what stands against guesses is the token's length.
    """

    def __init__(self, token: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()
        self._monotonic = monotonic
        self._wrong: dict[str, tuple[float, float]] = {}  # address -> tries left, as of when

    def require(self, token: str, address: str) -> None:
        """
        Raises:
            Refusal: ``operator-token``; ``operator-token-tries``: the next wrong one of an address
                that showed many.
        """
        found = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        if hmac.compare_digest(found, self._digest):
            return
        now = self._monotonic()
        left, before = self._wrong.get(address, (float(_WRONG_MAX), now))
        left = min(float(_WRONG_MAX), left + (now - before) / _WRONG_S)
        if left < 1:
            wait_s = math.ceil((1 - left) * _WRONG_S)
            raise Refusal(
                Kind.TOO_MANY,
                "operator-token-tries",
                "Too many wrong tokens came from this address.",
                expected=f"{_WRONG_MAX}, and one more every {_WRONG_S:.0f} s",
                remedy="Send the right token, or wait as long as Retry-After says.",
                retry_after_s=wait_s,
            )
        self._wrong.pop(address, None)
        self._wrong[address] = (left - 1, now)
        if len(self._wrong) > _BUCKETS_MAX:
            del self._wrong[next(iter(self._wrong))]
        raise Refusal(
            Kind.FORBIDDEN,
            "operator-token",
            "This is not the operator's token.",
            remedy="Send the text of operator.token in the aggregator's data folder, or of its "
            "setting operator_token.",
        )
