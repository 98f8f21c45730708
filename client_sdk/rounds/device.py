"""What all parts of one running participation share: identity, state, network and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.usage import Usage
from client_sdk.events import Event, EventKind
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.network.server_time import ServerTime
from client_sdk.network.transport import Transport
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.steering import Steering
from client_sdk.settings_fields import check_fields
from client_sdk.state.journal import Journal
from secagg.http_api import EnrolmentBundle
from secagg.manifest import Manifest


@dataclass(frozen=True)
class ParticipantSettings:
    """Times in seconds.

    Attributes:
        advert_lifetime_s: how long an advert waits for its cohort before it is made anew.
        opening_s: how long after its last step a device waits for the receipt.
        abort_wait_first_s, abort_wait_max_s: waits between attempts after aborted ones; the first
            repeat comes at once.
        slot_reserve_s: how long before a public slot the contributor must be done.
        stop_wait_s: how long a run that the app stops may still take: to finish a cohort that
            counts on this device, and then again for the contributor to see that it is to end.
    """

    advert_lifetime_s: float = 3_600.0
    opening_s: float = 900.0
    abort_wait_first_s: float = 1.0
    abort_wait_max_s: float = 60.0
    slot_reserve_s: float = 0.5
    stop_wait_s: float = 5.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class RunningDevice:
    """The parts of one running client. ``time`` is what it judges by; ``sleep`` waits seconds.

    ``usage``: what counts towards the limits per period; None: the policy has none.
    """

    bundle: EnrolmentBundle
    policy: PrivacyPolicy
    partner_keys: frozenset[bytes]
    journal: Journal
    account: DeviceAccount
    transport: Transport
    ledger: LedgerWatch
    deliver: Callable[[Event], Awaitable[None]]
    time: ServerTime
    settings: ParticipantSettings = field(default_factory=ParticipantSettings)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    usage: Usage | None = None
    steering: Steering = field(default_factory=Steering)

    def gave(self, manifest: Manifest, model_digest: bytes) -> bytes | None:
        """The cohort (ctx) for which this device may give no further vector from a model.

        None where it may: it gave none, noise in the ring hides the difference of two sums, or the
        app's policy lifts the rule.
        """
        if manifest.noise is not None or self.policy.repeat_without_noise:
            return None
        return self.account.given(model_digest)

    async def emit(
        self, kind: EventKind, task: str, session: str | None = None, **detail: object
    ) -> None:
        await self.deliver(Event(kind, task, session, detail))

    def admit_again(self, manifest: Manifest) -> None:
        """Return if the policy still admits a session's task.

        Raises:
            PolicyRefusal: as :meth:`client_sdk.policy.PrivacyPolicy.admit_terms`.
        """
        self.policy.admit_terms(
            manifest,
            own_partner=self.bundle.certificate.partner_key,
            account=self.account,
            usage=self.usage,
        )

    async def hear_time(self, task: str) -> None:
        """Where no word of the aggregator's was heard: the steady clock of an earlier one is gone.

        Raises:
            ClockError: as :meth:`client_sdk.network.server_time.ServerTime.hear`.
            TransportError: the aggregator is out of reach, or does not offer the task.
        """
        self.time.hear((await self.transport.offer(task, None, 0.0)).now)
