"""Who sends a request: the token in its head, for :mod:`aggregator.access` to judge."""

from __future__ import annotations

from aiohttp import web

from aggregator import logs
from aggregator.access import DeviceAccess, OperatorAccess
from aggregator.errors import Kind, Refusal
from aggregator.intake.open_requests import Intake
from aggregator.pseudonyms import Pseudonyms
from secagg.messages import Certificate

REMOTE = web.RequestKey("remote", str)  # the caller's address


class Callers:
    def __init__(
        self,
        devices: DeviceAccess,
        operator: OperatorAccess,
        intake: Intake,
        pseudonyms: Pseudonyms,
    ) -> None:
        self._devices = devices
        self._operator = operator
        self._intake = intake
        self._pseudonyms = pseudonyms

    async def device(self, request: web.Request) -> bytes:
        """The Ed25519 identity key (32 bytes) of the calling device; raises as
        :meth:`certificate`."""
        return (await self.certificate(request)).identity_key

    async def certificate(self, request: web.Request) -> Certificate:
        """Of the calling device; its request is counted.

        Raises:
            Refusal: ``token-missing``, as ``DeviceAccess.certificate``, or as ``Intake.enter``.
        """
        found = await self._devices.certificate(_bearer(request))
        logs.carry(device=self._pseudonyms.device(found.identity_key))
        self._intake.enter(request, found.identity_key)
        return found

    def demand_operator(self, request: web.Request) -> None:
        """
        Raises:
            Refusal: ``token-missing``, or as ``OperatorAccess.require``.
        """
        self._operator.require(_bearer(request), request[REMOTE])

    def demand_operator_token(self, token: str, remote: str) -> None:
        """As :meth:`demand_operator`, of a token that came with a form from this address.

        Raises:
            Refusal: as ``OperatorAccess.require``.
        """
        self._operator.require(token, remote)

    def operator_name(self, request: web.Request) -> str | None:
        """What logs call the token that came, right or wrong; None: none came."""
        try:
            return self._pseudonyms.operator(_bearer(request))
        except Refusal:
            return None


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refusal(
            Kind.UNAUTHENTICATED, "token-missing", "This route needs 'Authorization: Bearer …'."
        )
    return token.strip()
