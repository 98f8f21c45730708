"""Simulated devices: the real machine, a vector, and the moment at which the device is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol

from secagg import client
from secagg.errors import RemoteProtocolError
from secagg.ring import Lanes
from secagg.simulation.task import EPOCH_S
from secagg.tools import Tools

_LIFETIME_S = 3600.0


class Drop(IntEnum):
    """The first thing that a lost device does not do any more."""

    SHARE = 0  # before shares: the roster comes, the deals never leave
    CHECK = 1  # after shares: it dealt, but never says whether its inbox is good
    ANNOUNCE = 2  # after check: in S, but no masked vector is ever announced
    UPLOAD = 3  # its digest is signed, its vector never arrives whole
    LISTEN = 4  # after upload: in U, but it reads nothing any more
    CONFIRM = 5  # it reads U, its confirmation is lost
    UNMASK = 6  # it confirmed, its shares are lost
    NEVER = 7


@dataclass(frozen=True)
class Output:
    """What a device sent: a protocol message, then perhaps a packed vector."""

    number: int
    message: bytes
    payload: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Delivery:
    """A message on its way to a device."""

    number: int
    message: bytes
    now_s: float


class Devices(Protocol):
    """Wherever the devices of one cohort run."""

    def deliver(self, deliveries: Iterable[Delivery]) -> Iterable[Output]:
        """Give each device its messages, in order; what they send in answer, in that order."""


_DUE = {
    "failed": Drop.SHARE,  # it refuses the roster
    "shared": Drop.SHARE,
    "checked": Drop.CHECK,
    "confirmed": Drop.CONFIRM,
    "unmasked": Drop.UNMASK,
}


class Device:
    """One device and its driver.

    ``vector`` is called with (ctx) when the machine asks for the payload, and never before.
    """

    def __init__(
        self,
        config: client.ClientConfig,
        number: int,
        *,
        model_digest: bytes,
        model_version: int = 1,
        vector: Callable[[], Lanes],
        tools: Tools,
        drop: Drop = Drop.NEVER,
    ) -> None:
        self.config = config
        self.number = number
        self.tools = tools
        self.drop = drop
        self.refused: list[str] = []
        self._vector = vector
        self.state: client.State
        self.state, (sent,) = client.advertise(
            config,
            model_version=model_version,
            model_digest=model_digest,
            now_s=EPOCH_S,
            lifetime_s=_LIFETIME_S,
            tools=tools,
        )
        self.advert = sent.message
        self.lost = False

    def receive(self, message: bytes, now_s: float) -> list[Output]:
        """Feed one message; what the device sends in answer."""
        if self.lost:
            return []
        return self._drive(client.Received(message, now_s))

    def _drive(self, event: client.Event) -> list[Output]:
        try:
            self.state, effects = client.step(self.config, self.state, event, self.tools)
        except RemoteProtocolError as error:
            self.refused.append(error.reason)
            return []
        outputs: list[Output] = []
        for effect in effects:
            match effect:
                case client.ProvideVector():
                    if self.drop > Drop.ANNOUNCE:
                        outputs += self._drive(client.VectorReady(self._vector()))
                    else:
                        self.lost = True
                case client.Upload(header, payload):
                    whole = payload if self.drop > Drop.UPLOAD else None
                    outputs.append(Output(self.number, header, whole))
                    self.lost = self.drop in (Drop.UPLOAD, Drop.LISTEN)
                case client.Send(message):
                    if self.drop > _DUE[self.state.phase]:
                        outputs.append(Output(self.number, message))
                    else:
                        self.lost = True
        return outputs


class _Shared:
    """One copy of what all devices of a cohort hold alike: ten thousand devices would otherwise
    keep ten thousand lists of as many identity keys."""

    def __init__(self) -> None:
        self._keys: tuple[bytes, ...] = ()
        self._sets: dict[str, tuple[int, ...]] = {}

    def of(self, state: client.State) -> client.State:
        """The same state over the shared copies; what differs from them stays as it is."""
        if not isinstance(state, client.Joined):
            return state
        session = state.session
        self._keys = self._keys or session.identity_keys
        shared = replace(
            session,
            identity_keys=self._keys
            if self._keys == session.identity_keys
            else session.identity_keys,
            model_places=self._kept("model_places", session.model_places),
        )
        match state:
            case client.Confirmed():
                return replace(
                    state,
                    session=shared,
                    masking_set=self._kept("masking_set", state.masking_set),
                    survivors=self._kept("survivors", state.survivors),
                )
            case client.AwaitingVector() | client.Uploading():
                members = self._kept("masking_set", state.masking_set)
                return replace(state, session=shared, masking_set=members)
        return replace(state, session=shared)

    def _kept(self, name: str, value: tuple[int, ...]) -> tuple[int, ...]:
        kept = self._sets.setdefault(name, value) if value else value
        return kept if kept == value else value


class LocalDevices:
    """Devices in this process."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices = {device.number: device for device in devices}
        self._shared = _Shared()

    def advertise(self) -> Sequence[bytes]:
        return [device.advert for _, device in sorted(self.devices.items())]

    def deliver(self, deliveries: Iterable[Delivery]) -> Iterable[Output]:
        for delivery in deliveries:
            device = self.devices[delivery.number]
            outputs = device.receive(delivery.message, delivery.now_s)
            device.state = self._shared.of(device.state)
            yield from outputs
