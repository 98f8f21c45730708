"""The device's half of protocol 1: :func:`advertise`, then :func:`step` per event."""

from secagg.client.events import (
    Cancel,
    ClientConfig,
    Effect,
    Event,
    Failed,
    Finished,
    ProvideVector,
    Received,
    Send,
    Upload,
    VectorReady,
)
from secagg.client.machine import advertise, step
from secagg.client.snapshot import restore, snapshot
from secagg.client.states import (
    Advertised,
    AwaitingVector,
    Checked,
    Confirmed,
    Exchange,
    HeldShares,
    Joined,
    Shared,
    State,
    Unmasked,
    Uploading,
)

__all__ = [
    "Advertised",
    "AwaitingVector",
    "Cancel",
    "Checked",
    "ClientConfig",
    "Confirmed",
    "Effect",
    "Event",
    "Exchange",
    "Failed",
    "Finished",
    "HeldShares",
    "Joined",
    "ProvideVector",
    "Received",
    "Send",
    "Shared",
    "State",
    "Unmasked",
    "Upload",
    "Uploading",
    "VectorReady",
    "advertise",
    "restore",
    "snapshot",
    "step",
]
