"""Messages and events that are not due: reason, both values, the device that is to blame."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secagg import messages, server
from secagg.errors import LocalProtocolError, SecaggError
from secagg.keys import signing_key
from secagg.messages import (
    Ready,
)
from secagg.server import collect
from secagg.simulation import EPOCH_S
from tests.kits.asked import CONFIG, CTX, DEALS, FACTS, FIRST, INDEX, NAME, RUN, SELF, STATES
from tests.kits.protocol_run import CLIENTS
from tests.kits.said import Case, refused, said


def receive(phase: str, message: messages.Message, index: int = INDEX) -> None:
    event = server.Received(index, RUN.sign_as_device(message), EPOCH_S)
    server.step(CONFIG, replace(STATES[phase], accepted={}), event)


def signed_by_first(message: messages.Message) -> bytes:
    owner = RUN.task.devices[RUN.aggregator.numbers[FIRST]]
    return messages.sign(message, CTX, signing_key(owner.identity))


REFUSED: dict[str, Case] = {
    "a message for another exchange": Case(
        lambda: receive("checking", Ready(b"c", INDEX, NAME)),
        "message-context",
        INDEX,
        INDEX,
        culprit=SELF,
    ),
    "a message from another": Case(
        lambda: receive("checking", Ready(CTX, FIRST, NAME)),
        "message-context",
        INDEX,
        FIRST,
        culprit=SELF,
    ),
    "a message signed by another": Case(
        lambda: server.step(
            CONFIG,
            replace(STATES["checking"], accepted={}),
            server.Received(INDEX, signed_by_first(Ready(CTX, INDEX, NAME)), EPOCH_S),
        ),
        "signer-unexpected",
        SELF.hex(),
        FACTS.identity(FIRST).hex(),
    ),
    "a message too early": Case(
        lambda: receive("sharing", Ready(CTX, INDEX, NAME)),
        "message-not-due",
        ["Cancel", "Deals", "Exclude", "Refusal", "Tick"],
        "Ready",
        culprit=SELF,
    ),
    "a check after a check": Case(
        lambda: server.step(
            CONFIG,
            replace(STATES["checking"], answered=frozenset({INDEX})),
            RUN.server_events["Ready"],
        ),
        "message-changed",
        culprit=SELF,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_device_that_breaks_the_rules_is_told_how_and_named(name: str) -> None:
    refused(REFUSED[name])


MISUSE: dict[str, Case] = {
    "an index beyond the roster": Case(
        lambda: receive("sharing", DEALS, CLIENTS), "index-out-of-roster", None, CLIENTS
    ),
    "a vector that was not announced": Case(
        lambda: collect.take_vector(
            replace(STATES["masking"], announced=frozenset({3, 1}), added=frozenset({1})), 0
        ),
        "vector-not-due",
        [3],
        0,
    ),
    "a vector added twice": Case(
        lambda: collect.take_vector(
            replace(STATES["masking"], announced=frozenset({3, 1}), added=frozenset({1})), 1
        ),
        "vector-not-due",
        [3],
        1,
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_a_driver_hears_what_it_did_wrong(name: str) -> None:
    refused(MISUSE[name], LocalProtocolError)


def test_a_driver_event_that_is_not_due_says_what_is() -> None:
    with pytest.raises(SecaggError, match="SumUnmasked is not due") as caught:
        server.step(CONFIG, STATES["masking"], server.SumUnmasked(EPOCH_S))
    due = ["Cancel", "MaskedInput", "Tick", "VectorAdded"]
    assert said(caught.value) == ("event-not-due", due, "SumUnmasked")
