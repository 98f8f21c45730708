"""Messages in another device's name, or to the wrong one, cost only their sender."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from secagg import messages, server
from secagg.keys import signing_key
from secagg.messages import Message
from secagg.server import collect
from secagg.simulation import Hooks, SimulatedTask, run_cohort
from tests.kits.adversary import unverified
from tests.kits.corrupt import CLIENTS, LIAR, assert_released_without, one_hot, rewriting, task


def misaddressed(field: str) -> Callable[[SimulatedTask], Hooks]:
    def hooks(shown: SimulatedTask) -> Hooks:
        key = signing_key(shown.devices[LIAR].identity)

        def change(message: Message, ctx: bytes) -> Message | None:
            if not isinstance(message, messages.Deals):
                return None
            changed = []
            for signed in message.deals:
                deal, _ = messages.peek(signed, messages.Deal)
                own = deal.sender
                values = {
                    "sender": {"sender": (own + 1) % CLIENTS},
                    "recipient": {"recipient": own},
                }[field]
                changed.append(messages.sign(msgspec.structs.replace(deal, **values), ctx, key))
            return messages.Deals(ctx, tuple(changed), ())

        return rewriting(shown, change)

    return hooks


@pytest.mark.parametrize("field", ["sender", "recipient"])
def test_deals_in_anothers_name_or_to_oneself_cost_only_their_sender(field: str) -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=misaddressed(field)(shown))
    assert (LIAR, "deal-address") in result.refused
    assert_released_without(result, LIAR)


def test_without_the_address_check_one_device_stops_everyone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened aggregator forwards what its recipients must take for its own misdeed."""

    def deal_facts(facts, dealer, recipient, signed):
        deal, _ = messages.peek(signed, messages.Deal)
        return server.states.DealFacts(
            digest=collect.digest("deal", signed),
            share_hashes=deal.share_hashes,
            sealed_pair_seed=deal.sealed_pair_seed,
        )

    monkeypatch.setattr(collect, "_deal_facts", deal_facts)
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=misaddressed("sender")(shown))
    assert isinstance(result.state, server.Aborted)


@pytest.mark.parametrize("kind", [messages.Ready, messages.MaskedInput, messages.Confirmation])
def test_a_message_with_anothers_index_costs_only_its_sender(kind: type[Message]) -> None:
    shown = task()

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, kind):
            return None
        other = (message.index + 1) % CLIENTS
        return msgspec.structs.replace(message, index=other)

    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    assert (LIAR, "message-context") in result.refused
    assert_released_without(result, *([] if kind is messages.Confirmation else [LIAR]))


def test_a_message_signed_by_another_device_is_refused() -> None:
    shown = task()
    other = signing_key(shown.devices[LIAR + 1].identity)

    def upward(sender: int, signed: bytes) -> list[bytes]:
        if sender != LIAR:
            return [signed]
        message, _ = messages.peek(signed, *messages.KINDS)
        return [messages.sign(message, message.ctx, other)]

    result = run_cohort(shown, one_hot(), hooks=Hooks(upward=upward))
    assert (LIAR, "signer-unexpected") in result.refused
    assert_released_without(result, LIAR)


def in_the_victims_name(shown: SimulatedTask) -> Hooks:
    """Somebody on the victim's connection announces another vector, signed by a device of his."""
    other = signing_key(shown.devices[LIAR + 1].identity)

    def upward(sender: int, signed: bytes) -> list[bytes]:
        message, _ = messages.peek(signed, *messages.KINDS)
        if sender != LIAR or not isinstance(message, messages.MaskedInput):
            return [signed]
        changed = msgspec.structs.replace(message, vector_digest=b"v" * 32)
        return [messages.sign(changed, message.ctx, other), signed]

    return Hooks(upward=upward)


def test_an_announcement_in_the_victims_name_does_not_cost_it_its_place() -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=in_the_victims_name(shown))
    assert (LIAR, "signer-unexpected") in result.refused
    assert_released_without(result)


def test_without_signatures_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.machine, "verify", unverified)
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=in_the_victims_name(shown))
    assert (LIAR, "vector-digest") in result.refused
    assert_released_without(result, LIAR)


def test_without_the_index_check_a_confirmation_in_anothers_name_stops_everyone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened aggregator hands it on, and its recipients end the exchange over it."""

    def authenticate(state, event):
        kinds = server.machine._FROM_DEVICES
        sender = state.facts.identity(event.index)
        return messages.verify(event.message, state.facts.ctx, *kinds, signer=sender)[0]

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Confirmation):
            return None
        return msgspec.structs.replace(message, index=(message.index + 1) % CLIENTS)

    monkeypatch.setattr(server.machine, "_authenticate", authenticate)
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    assert isinstance(result.state, server.Aborted)
    assert result.total is None
