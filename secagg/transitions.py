"""The truth about phases: which event may arrive in which phase, and where it leads.

Both machines look every event up here before they handle it; an illegal move is a missing key.
An event is named by its class, a received message by the class of the message. Terminal phases
have no row: whatever arrives there is ignored. A message that was obeyed before does nothing when
it arrives again, in any phase. A device's message that comes after its phase has ended is passed
over by the aggregator: the device is told by what is in its mailbox.
"""

from __future__ import annotations

from collections.abc import Mapping

Table = Mapping[tuple[str, str], frozenset[str]]


def _row(phase: str, **events: tuple[str, ...]) -> dict[tuple[str, str], frozenset[str]]:
    return {(phase, event): frozenset(targets) for event, targets in events.items()}


CLIENT_TERMINAL = frozenset({"finished", "failed"})
CLIENT: Table = {
    **_row("advertised", Roster=("shared", "failed"), Cancel=("failed",)),
    **_row("shared", Inbox=("checked", "failed"), Abort=("failed",), Cancel=("failed",)),
    **_row(
        "checked",
        MaskingSet=("awaiting-vector", "failed"),
        Abort=("failed",),
        Cancel=("failed",),
    ),
    **_row("awaiting-vector", VectorReady=("uploading",), Abort=("failed",), Cancel=("failed",)),
    **_row("uploading", SurvivorSet=("confirmed", "failed"), Abort=("failed",), Cancel=("failed",)),
    **_row(
        "confirmed",
        Confirmations=("unmasked", "failed"),
        Receipt=("finished",),
        Abort=("failed",),
        Cancel=("failed",),
    ),
    **_row("unmasked", Receipt=("finished",), Abort=("failed",), Cancel=("failed",)),
}

SERVER_ORDER = (
    "sharing",
    "checking",
    "masking",
    "confirming",
    "unmasking",
    "opening",
    "releasing",
)
SERVER_TERMINAL = frozenset({"released", "aborted"})
SERVER: Table = {
    **_row(
        "sharing",
        Deals=("sharing", "checking", "aborted"),
        Refusal=("sharing", "checking", "aborted"),
        Tick=("sharing", "checking", "aborted"),
        Exclude=("sharing",),
        Cancel=("aborted",),
    ),
    **_row(
        "checking",
        Ready=("checking", "masking", "aborted"),
        Complaint=("checking", "masking", "aborted"),
        Tick=("checking", "masking", "aborted"),
        Exclude=("checking",),
        Cancel=("aborted",),
    ),
    **_row(
        "masking",
        MaskedInput=("masking",),
        VectorAdded=("masking", "confirming", "aborted"),
        Tick=("masking", "confirming", "aborted"),
        Cancel=("aborted",),
    ),
    **_row(
        "confirming",
        Confirmation=("confirming", "unmasking", "aborted"),
        Tick=("confirming", "unmasking", "aborted"),
        Cancel=("aborted",),
    ),
    **_row(
        "unmasking",
        Unmask=("unmasking", "opening", "aborted"),
        Tick=("unmasking", "aborted"),
        Cancel=("aborted",),
    ),
    **_row(
        "opening",
        SumOpened=("releasing",),
        SumRefused=("aborted",),
        Tick=("opening",),
        Cancel=("aborted",),
    ),
    **_row(
        "releasing",
        ReleaseCommitted=("released",),
        SumRefused=("aborted",),
        Tick=("releasing",),
        Cancel=("aborted",),
    ),
}


def server_is_late(phase: str, message: str) -> bool:
    """Whether a device's message was due in an earlier phase only, so that it is passed over."""
    earlier = SERVER_ORDER[: SERVER_ORDER.index(phase)]
    return (phase, message) not in SERVER and any((past, message) in SERVER for past in earlier)
