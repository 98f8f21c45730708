"""The event log of one cohort, and its replay.

An event is stored as its kind and MessagePack of its fields. Replaying a log through the
deterministic machine gives the state and every effect again, so nothing that follows from the
events is stored a second time, except the mail that devices fetch. Rosters and inboxes, nearly all
of its bytes, are not stored either: they are made anew for whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from secagg.server import (
    AcceptUpload,
    Cancel,
    Checking,
    Deliver,
    Effect,
    Event,
    Exclude,
    Received,
    ReleaseCommitted,
    RemoveMasks,
    ServerConfig,
    Sharing,
    State,
    SumRefused,
    SumUnmasked,
    Tick,
    VectorAdded,
    Wake,
    open_cohort,
    step,
)
from secagg.unmasking import UnmaskingPlan

OPENED = "opened"
RECEIVED = "received"
_KINDS: dict[str, type] = {
    RECEIVED: Received,
    "vector-added": VectorAdded,
    "tick": Tick,
    "sum-opened": SumUnmasked,
    "sum-refused": SumRefused,
    "release-committed": ReleaseCommitted,
    "cancel": Cancel,
    "exclude": Exclude,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_encoder = msgspec.msgpack.Encoder()


class CohortFormed(msgspec.Struct, frozen=True):
    """Event number 0: what ``open_cohort`` was called with."""

    cohort: bytes
    attempt: int
    adverts: tuple[bytes, ...]
    now_s: float


def encode_formed(formed: CohortFormed) -> bytes:
    return _encoder.encode(formed)


def encode_event(event: Event) -> tuple[str, bytes]:
    """(kind, payload) as stored."""
    return _NAMES[type(event)], _encoder.encode(event)


def decode_event(kind: str, payload: bytes) -> Event:
    return msgspec.msgpack.decode(payload, type=_KINDS[kind])


@dataclass
class Replay:
    """A cohort's state and what its effects have asked for so far.

    ``mail``: messages delivered so far, by roster index. ``uploads``: accepted headers.
    ``large``: number and effect of a device's last roster or inbox, while it may be answered.
    """

    state: State
    seq: int = 0
    mail: dict[int, int] = field(default_factory=dict)
    large: dict[int, tuple[int, Deliver]] = field(default_factory=dict)
    uploads: dict[int, AcceptUpload] = field(default_factory=dict)
    plan: UnmaskingPlan | None = None
    wake_at_s: float | None = None

    def absorb(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                self.mail[effect.index] = number = self.mail.get(effect.index, 0) + 1
                if effect.large:
                    self.large[effect.index] = number, effect
            elif isinstance(effect, AcceptUpload):
                self.uploads[effect.index] = effect
            elif isinstance(effect, RemoveMasks):
                self.plan = effect.plan
            elif isinstance(effect, Wake):
                self.wake_at_s = effect.at_s
        if not isinstance(self.state, Sharing | Checking):
            self.large.clear()

    def letter(self, index: int, number: int) -> Deliver | None:
        """The roster or inbox that is this message of a device; None once nobody can need it."""
        last, effect = self.large.get(index, (0, None))
        return effect if last == number else None

    def woken(self, wake_at_s: float, again_s: float | None) -> None:
        """The time ``wake_at_s`` was acted on; wake at ``again_s``, unless a newer one is set."""
        if self.wake_at_s == wake_at_s:
            self.wake_at_s = again_s


def begin(config: ServerConfig, formed: CohortFormed) -> tuple[Replay, tuple[Effect, ...]]:
    """Open a cohort; raises what ``open_cohort`` raises."""
    state, effects = open_cohort(
        config,
        cohort=formed.cohort,
        attempt=formed.attempt,
        adverts=formed.adverts,
        now_s=formed.now_s,
    )
    replay = Replay(state)
    replay.absorb(effects)
    return replay, tuple(effects)


def catch_up(config: ServerConfig, replay: Replay, rows: Iterable[tuple[str, bytes]]) -> None:
    """Apply stored events (kind, payload), in order, to a replay."""
    for kind, payload in rows:
        replay.state, effects = step(config, replay.state, decode_event(kind, payload))
        replay.seq += 1
        replay.absorb(effects)
