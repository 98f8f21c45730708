"""A session of an earlier process under the policy of this one.

A policy may change between two processes. While nothing is charged, nothing that a contribution
shows has left, so the present policy decides: it admits the task anew, and the session goes on only
with terms that are no weaker than the present ones.
"""

from __future__ import annotations

from client_sdk.errors import PolicyRefusal
from client_sdk.rounds.device import Device
from client_sdk.rounds.session import Session
from secagg.client import Advertised, AwaitingVector, Checked, Shared


def check_pending(device: Device, session: Session) -> None:
    """Return if a session goes on; after its charge it always does, with its own terms.

    Raises:
        PolicyRefusal: as :func:`admit_again`; ``policy-changed``: the session's terms are weaker
            than the present policy's, or, while it waits for a cohort, others.
        StateError: ``data-account-missing``.
    """
    state, policy = session.state, device.policy
    waits = isinstance(state, Advertised)
    if isinstance(state, Shared | Checked | AwaitingVector):
        if state.session.ctx.hex() in device.account.cohorts():
            return
    elif not waits:
        return
    device.account.refresh()
    admit_again(device, session)
    begun = (session.record.survivors_min, frozenset(session.record.partner_keys))
    present = (policy.min_cohort, device.partner_keys)
    weaker = begun[0] < present[0] or not begun[1] <= present[1]
    if weaker or (waits and begun != present):
        raise PolicyRefusal(
            "policy-changed",
            "The session began under another policy.",
            expected=_shown(*present),
            found=_shown(*begun),
            remedy="Run the task again: the next session has the present terms.",
        )


def admit_again(device: Device, session: Session) -> None:
    """Return if the policy still admits the session's task.

    Raises:
        PolicyRefusal: as :meth:`client_sdk.policy.PrivacyPolicy.admit_terms`.
    """
    device.policy.admit_terms(
        session.manifest,
        own_partner=device.bundle.certificate.partner_key,
        account=device.account,
    )


def _shown(survivors_min: int, partner_keys: frozenset[bytes]) -> dict[str, object]:
    return {"min_cohort": survivors_min, "partner_keys": sorted(key.hex() for key in partner_keys)}
