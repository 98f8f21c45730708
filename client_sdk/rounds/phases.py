"""How long a request inside a cohort may take, so that one that stalls is repeated in time."""

from __future__ import annotations

import math

from client_sdk.rounds.session import Session

# Of a machine's phase: the deadlines of the step that it works for, and of the one after it.
_STEPS = {
    "advertised": (None, "share_s"),
    "shared": ("share_s", "check_s"),
    "checked": ("check_s", "masked_input_s"),
    "awaiting-vector": ("masked_input_s", "masked_input_s"),
    "uploading": ("masked_input_s", "confirm_s"),
    "confirmed": ("confirm_s", "unmask_s"),
    "unmasked": ("unmask_s", None),
}
PARTS = (1 / 2, 2 / 3)  # of a step; the rest is for the repeat


def answer_within_s(session: Session) -> float:
    """Most seconds of a request by which this device answers, or looks before it answers."""
    return _part_of(session, 0)


def news_within_s(session: Session) -> float:
    """Most seconds of a poll for what this device has to answer in the next step."""
    return _part_of(session, 1)


def _part_of(session: Session, which: int) -> float:
    step = _STEPS.get(session.state.phase, (None, None))[which]
    return math.inf if step is None else PARTS[which] * getattr(session.manifest.deadlines, step)
