"""Who may call: devices by a token that their own key signs, operators by one shared token."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from aggregator.errors import Kind, Refusal
from aggregator.operator_tokens import OperatorTokens
from aggregator.partners import Partners, partner_removed
from aggregator.settings.options import TOKEN_LONG
from secagg.access_token import certificate_of_token
from secagg.errors import RemoteProtocolError
from secagg.messages import Certificate

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

    async def certificate(self, token: str) -> Certificate:
        """Whose identity key made this token, and which partner vouches for it.

        Raises:
            Refusal: with the token's fault, ``partner-removed`` or ``rate-limited``.
        """
        try:
            certificate = await self._verified(token)
        except RemoteProtocolError as error:
            if error.reason == "partner-unknown":
                raise self._not_certified(str(error.found)) from error
            raise Refusal(
                Kind.UNAUTHENTICATED, error.reason, error.message, remedy=error.remedy
            ) from error
        self._spend(certificate.identity_key)
        return certificate

    async def _verified(self, token: str) -> Certificate:
        """As ``certificate_of_token``, with what the database says of a partner not known here."""
        now = int(self._clock())
        for again in (True, False):
            try:
                return certificate_of_token(token, self._audience, self._partners.admitted, now)
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
    """Lets in who shows an operator's token.

    An address that shows many wrong tokens is told to wait. Others may share it, so a right one
    that is long is let in all the same: nobody guesses it. A short one waits as well, or whoever
    shows very many would be let in by the right one among them.
    """

    def __init__(
        self, tokens: OperatorTokens, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._tokens = tokens
        self._monotonic = monotonic
        self._wrong: dict[str, tuple[float, float]] = {}  # address -> tries left, as of when

    def require(self, token: str, address: str) -> None:
        """
        Raises:
            Refusal: ``operator-token``; ``operator-token-tries``: the next one of an address that
                showed many wrong ones, unless it is right and long.
        """
        right = self._tokens.admits(token)
        if right and not (len(token) < TOKEN_LONG and address in self._wrong):
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
                remedy="Wait as long as Retry-After says, then send the right token.",
                retry_after_s=wait_s,
            )
        if right:
            return
        self._wrong.pop(address, None)
        self._wrong[address] = (left - 1, now)
        if len(self._wrong) > _BUCKETS_MAX:
            del self._wrong[next(iter(self._wrong))]
        raise Refusal(
            Kind.FORBIDDEN,
            "operator-token",
            "This is not the operator's token.",
            remedy="Send the text of operator.token in the aggregator's data folder, or of its "
            "setting operator_token; after secagg token rotate that of the file it wrote.",
        )
