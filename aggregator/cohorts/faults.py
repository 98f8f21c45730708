"""Whose fault it was that a cohort came to nothing, as far as the service can tell.

``devices``: some device did not do its part, or sent what cannot be right. ``service``: its own
work failed, or nobody was there when a deadline passed. ``unknown``: devices were missed, but the
service had failures or a restart of its own while they were due.
"""

from __future__ import annotations

from typing import Literal

from secagg.evidence import KINDS as CONVICTED
from secagg.messages import KINDS, Deals, MaskedInput
from secagg.server import Aborted

Fault = Literal["service", "devices", "unknown"]
LATE_S = 30.0  # a deadline that is noticed later than this passed while no replica was there
MISSED = {  # reason -> step at which devices were missed
    "too-few-dealers": "sharing",
    "too-few-ready": "checking",
    "too-few-vectors": "masking",
    "too-few-confirmations": "confirming",
    "too-few-shares": "unmasking",
}
REFUSED_SUMS = frozenset(("check-coordinates", "noise-measured-missing"))


def fault_of(reason: str, *, late_s: float, failed: bool, restarted: bool) -> Fault:
    """
    Args:
        reason: why the cohort ended.
        late_s: seconds between the phase's deadline and its being noticed.
        failed: some replica's work for this cohort has failed before.
        restarted: the cohort is older than the process of some replica.
    """
    if reason in CONVICTED:
        return "devices"
    if reason in REFUSED_SUMS:
        return "unknown" if failed else "devices"
    if reason not in MISSED:
        return "service"
    if late_s > LATE_S:
        return "service"
    return "unknown" if failed or restarted else "devices"


def any_byte_sent(state: Aborted) -> bool:
    """Whether a vector's header was accepted: no device sends a byte of its vector before."""
    return bool(state.accepted.get(KINDS[MaskedInput][0]))


def vectors_of(state: Aborted) -> int:
    """How many devices sent a vector; after the phase of the vectors, how many announced one."""
    if state.reason == "too-few-vectors":
        return len(state.masking_set) - len(state.silent)
    return len(state.accepted.get(KINDS[MaskedInput][0], ()))


def lacking(state: Aborted, survivors_min: int) -> str | None:
    """What came too short, in words: "3 of 8 vectors came; at least 5 are needed". None if the
    cohort did not end because of devices that were missed.

    Args:
        survivors_min: devices that must be in a sum.
    """
    if state.reason not in MISSED:
        return None
    missed, floor = len(state.silent), f"at least {survivors_min} are needed"
    match state.reason:
        case "too-few-dealers":
            dealt = len(state.accepted.get(KINDS[Deals][0], ()))
            return f"{dealt} of {state.facts.size} devices dealt; {floor}"
        case "too-few-ready":
            return f"{missed} devices that had dealt did not say that they are ready; {floor}"
        case "too-few-vectors":
            came = vectors_of(state)
            text = f"{came} of {len(state.masking_set)} vectors came; {floor}"
            if came >= survivors_min:
                text += ", and enough beside each device, behind each model and for the noise"
            return text
    called = "confirmations" if state.reason == "too-few-confirmations" else "answers to unmask"
    return f"{missed} {called} did not come; {state.facts.threshold} beside each device are needed"


def in_question(state: Aborted) -> tuple[int, ...]:
    """Roster indices of the devices of which one at least is at fault, none being named: those in
    a sum that was refused, or those for which the last phase waited in vain."""
    return state.summed if state.reason in REFUSED_SUMS else state.silent
