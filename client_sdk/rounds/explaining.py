"""What taking part would mean, asked before: with the checks of a check-in, and nothing fetched."""

from __future__ import annotations

from client_sdk.contribution import (
    Contributor,
    check_contributor,
    check_memory,
    memory_needed,
)
from client_sdk.errors import PolicyRefusal
from client_sdk.explanation import Explanation, explanation
from client_sdk.ledger.evidence import Quarantine
from client_sdk.rounds.checkin import demand_in_ledger, verified
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.missing_charges import recover_new
from client_sdk.rounds.schedule import count_of, look_again


async def explain(device: RunningDevice, task: str, contributor: Contributor | None) -> Explanation:
    """As :meth:`client_sdk.client.Client.explain`.

    Raises:
        PolicyRefusal: ``manifest-unsound``. Others are in what is returned.
        RemoteProtocolError, ClockError, LedgerRefusal, StateError, TransportError: as
            :func:`client_sdk.rounds.checkin.check_in`.
    """
    await recover_new(device, task)
    Quarantine(device.journal).check(device.ledger.verifier, task)
    offer = await device.transport.offer(task, None, 0.0)
    manifest, digest = await verified(device, task, offer)
    refusals = list(
        device.policy.refusals(
            manifest,
            own_partner=device.bundle.certificate.partner_key,
            account=device.account,
            usage=device.usage,
        )
    )
    for refusal in refusals:
        if refusal.reason == "manifest-unsound":
            raise refusal
    await look_again(device, manifest, debits=False)
    await demand_in_ledger(device, offer, manifest.task, digest)
    memory_bytes = None
    try:
        count_of(device, manifest)
        if contributor is not None:
            memory_bytes = memory_needed(manifest, contributor)
            check_contributor(manifest, contributor)
            check_memory(manifest, contributor, device.policy.max_memory_bytes)
    except PolicyRefusal as refusal:
        refusals.append(refusal)
    return explanation(
        manifest,
        digest,
        offer,
        account=device.account,
        policy=device.policy,
        memory_bytes=memory_bytes,
        refusals=tuple(refusals),
    )
