"""One corrupt device in a cohort of six: a place to change what it sends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secagg import messages, server
from secagg.keys import signing_key
from secagg.messages import Message
from secagg.simulation import CohortResult, Hooks, SimulatedTask, make_task

CLIENTS = 6
LIAR = 2  # enrolment number of the corrupt device


def task() -> SimulatedTask:
    # k = 5, c = 1: t = 4, so one device may be missing.
    return make_task(CLIENTS, CLIENTS, slice_length=4, survivors_min=4, corrupt_max=1)


def one_hot() -> list[np.ndarray]:
    return [np.eye(CLIENTS, dtype=np.int64)[number] for number in range(CLIENTS)]


def identity(shown: SimulatedTask, number: int = LIAR) -> bytes:
    return shown.devices[number].certificate.identity_key


def rewriting(
    shown: SimulatedTask, change: Callable[[Message, bytes], Message | None], number: int = LIAR
) -> Hooks:
    """The corrupt device sends ``change(message, ctx)`` instead, signed by itself."""
    key = signing_key(shown.devices[number].identity)

    def upward(sender: int, signed: bytes) -> list[bytes]:
        if sender != number:
            return [signed]
        message, _ = messages.peek(signed, *messages.KINDS)
        ctx = message.ctx
        changed = change(message, ctx)
        return [signed] if changed is None else [messages.sign(changed, ctx, key)]

    return Hooks(upward=upward)


def assert_released_without(result: CohortResult, *missing: int) -> None:
    assert isinstance(result.state, server.Released)
    assert result.total is not None
    assert result.total.tolist() == [int(n not in missing) for n in range(CLIENTS)]
