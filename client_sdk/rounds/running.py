"""A running device put together: its journal and account with the network and the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.usage import Usage
from client_sdk.events import Event
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.network.http import TransportSettings
from client_sdk.network.server_time import ServerTime
from client_sdk.network.transport import Transport
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.device import ParticipantSettings, RunningDevice
from client_sdk.rounds.steering import Steering
from client_sdk.state.journal import Journal
from secagg.access_token import issue_access_token
from secagg.http_api import EnrolmentBundle
from secagg.secret import Secret


@asynccontextmanager
async def running_device(
    bundle: EnrolmentBundle,
    policy: PrivacyPolicy,
    journal: Journal,
    account: DeviceAccount,
    deliver: Callable[[Event], Awaitable[None]],
    steering: Steering,
    *,
    transport: TransportSettings,
    settings: ParticipantSettings,
    clock: Callable[[], float],
    steady: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> AsyncIterator[RunningDevice]:
    """A device whose network is there inside the context.

    Raises:
        StateError: ``state-damaged``.
        NetworkError: ``ca-file``.
    """
    identity, limits = Secret(bundle.identity_seed), policy.per_period
    now = ServerTime(journal, clock, steady)
    usage = None if limits is None else Usage(journal, limits, now)

    def issue(now_s: int) -> str:
        return issue_access_token(identity, bundle.certificate, bundle.task_key, now_s)

    async def tell(event: Event) -> None:
        await deliver(event)
        steering.look()

    async with Transport(bundle.server, issue, transport, now, usage) as network:
        yield RunningDevice(
            bundle=bundle,
            policy=policy,
            partner_keys=policy.trusted_partners(bundle.certificate.partner_key),
            journal=journal,
            account=account,
            transport=network,
            ledger=LedgerWatch(
                network,
                journal,
                bundle.ledger_verifier,
                sleep,
                policy.witness_policy,
                identity,
                transport.ledger_s,
            ),
            deliver=tell,
            time=now,
            settings=settings,
            sleep=sleep,
            usage=usage,
            steering=steering,
        )
