"""The truth about a device's phases (:mod:`secagg.transitions`)."""

from __future__ import annotations

from secagg.client.events import Cancel, Failed, Finished, VectorReady
from secagg.client.states import (
    Advertised,
    AwaitingVector,
    Checked,
    Confirmed,
    Joined,
    Shared,
    State,
    Unmasked,
    Uploading,
)
from secagg.messages import (
    Abort,
    Confirmations,
    Inbox,
    MaskingSet,
    Message,
    Receipt,
    Roster,
    SurvivorSet,
)
from secagg.transitions import Table

# A received message counts as the event, not that one was received.
Due = Message | VectorReady | Cancel

TABLE: Table[Advertised | Joined, Due, State] = {
    Advertised: {Roster: (Shared, Failed), Cancel: (Failed,)},
    Shared: {Inbox: (Checked, Failed), Abort: (Failed,), Cancel: (Failed,)},
    Checked: {MaskingSet: (AwaitingVector, Failed), Abort: (Failed,), Cancel: (Failed,)},
    AwaitingVector: {VectorReady: (Uploading,), Abort: (Failed,), Cancel: (Failed,)},
    Uploading: {SurvivorSet: (Confirmed, Failed), Abort: (Failed,), Cancel: (Failed,)},
    Confirmed: {
        Confirmations: (Unmasked, Failed),
        Receipt: (Finished,),
        Abort: (Failed,),
        Cancel: (Failed,),
    },
    Unmasked: {Receipt: (Finished,), Abort: (Failed,), Cancel: (Failed,)},
}
TERMINAL = (Finished, Failed)
