"""The truth about a cohort's phases (:mod:`secagg.transitions`).

A device's message that comes after its phase has ended is passed over by the aggregator: the device
is told by what is in its mailbox.
"""

from __future__ import annotations

from secagg.messages import (
    Complaint,
    Confirmation,
    Deals,
    MaskedInput,
    Ready,
    Refusal,
    Unmask,
)
from secagg.server.events import (
    Cancel,
    DeviceMessage,
    DriverEvent,
    Exclude,
    ReleaseCommitted,
    SumRefused,
    SumUnmasked,
    Tick,
    VectorAdded,
)
from secagg.server.states import (
    Aborted,
    Checking,
    Confirming,
    Live,
    Masking,
    Released,
    Releasing,
    Sharing,
    State,
    Unmasking,
    UnmaskingSum,
)
from secagg.transitions import Table

# In the order of the protocol.
TABLE: Table[Live, DeviceMessage | DriverEvent, State] = {
    Sharing: {
        Deals: (Sharing, Checking, Aborted),
        Refusal: (Sharing, Checking, Aborted),
        Tick: (Sharing, Checking, Aborted),
        Exclude: (Sharing, Checking, Aborted),
        Cancel: (Aborted,),
    },
    Checking: {
        Ready: (Checking, Masking, Aborted),
        Complaint: (Checking, Masking, Aborted),
        Tick: (Checking, Masking, Aborted),
        Exclude: (Checking, Masking, Aborted),
        Cancel: (Aborted,),
    },
    Masking: {
        MaskedInput: (Masking,),
        VectorAdded: (Masking, Confirming, Aborted),
        Tick: (Masking, Confirming, Aborted),
        Cancel: (Aborted,),
    },
    Confirming: {
        Confirmation: (Confirming, Unmasking, Aborted),
        Tick: (Confirming, Unmasking, Aborted),
        Cancel: (Aborted,),
    },
    Unmasking: {
        Unmask: (Unmasking, UnmaskingSum, Aborted),
        Tick: (Unmasking, Aborted),
        Cancel: (Aborted,),
    },
    UnmaskingSum: {
        SumUnmasked: (Releasing,),
        SumRefused: (Aborted,),
        Tick: (UnmaskingSum,),
        Cancel: (Aborted,),
    },
    Releasing: {
        ReleaseCommitted: (Released,),
        SumRefused: (Aborted,),
        Tick: (Releasing,),
        Cancel: (Aborted,),
    },
}
TERMINAL = (Released, Aborted)


def is_late(state: Live, message: type[DeviceMessage]) -> bool:
    """Whether a device's message was due in an earlier phase only, so that it is passed over."""
    order = tuple(TABLE)
    earlier = order[: order.index(type(state))]
    return message not in TABLE[type(state)] and any(message in TABLE[past] for past in earlier)
