"""What the aggregator refuses from a device: by reason, naming the sender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from secagg import messages, server
from secagg.errors import RemoteProtocolError
from secagg.messages import Message
from secagg.simulation import EPOCH_S
from tests.kits.protocol_run import Run, recorded_run

_replace = msgspec.structs.replace


def genuine(run: Run, name: str) -> Message:
    event = run.server_events[name]
    assert isinstance(event, server.Received)
    return messages.peek(event.message, *messages.KINDS)[0]


def refuse(run: Run, state: server.State, message: Message) -> str:
    event = server.Received(run.index, run.sign_as_device(message), EPOCH_S)
    with pytest.raises(RemoteProtocolError) as caught:
        server.step(run.task.server, state, event)
    assert caught.value.culprit == run.device.config.certificate.identity_key
    return caught.value.reason


def with_deal(change: Callable[[messages.Deal], messages.Deal]) -> Callable[[Run], messages.Deals]:
    def make(run: Run) -> messages.Deals:
        deals = genuine(run, "Deals")
        assert isinstance(deals, messages.Deals)
        first, _ = messages.peek(deals.deals[0], messages.Deal)
        return _replace(deals, deals=(run.sign_as_device(change(first)), *deals.deals[1:]))

    return make


def deals_with(
    change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]],
) -> Callable[[Run], Message]:
    def make(run: Run) -> Message:
        deals = genuine(run, "Deals")
        assert isinstance(deals, messages.Deals)
        return _replace(deals, deals=change(deals.deals))

    return make


BAD_DEALS: dict[str, tuple[str, Callable[[Run], Message]]] = {
    "one missing": ("deals-count", deals_with(lambda deals: deals[1:])),
    "one twice": ("deals-count", deals_with(lambda deals: (*deals, deals[0]))),
    "none": ("deals-count", deals_with(lambda deals: ())),
    "two swapped": ("deal-address", deals_with(lambda d: (d[1], d[0], *d[2:]))),
    "another context": ("deal-address", with_deal(lambda d: _replace(d, ctx=bytes(32)))),
    "a long seal": (
        "deal-size",
        with_deal(lambda d: _replace(d, sealed_shares=d.sealed_shares + b"x")),
    ),
    "a short hash": (
        "deal-size",
        with_deal(lambda d: _replace(d, share_hashes=(b"h", d.share_hashes[1]))),
    ),
    "no hash": ("deal-size", with_deal(lambda d: _replace(d, share_hashes=d.share_hashes[:1]))),
    "a seed from the wrong end or none": (
        "deal-size",
        with_deal(
            lambda d: _replace(d, sealed_pair_seed=b"" if d.sealed_pair_seed else b"s" * 1168)
        ),
    ),
}


@pytest.mark.parametrize("case", BAD_DEALS)
def test_bad_deals(case: str) -> None:
    reason, make = BAD_DEALS[case]
    run = recorded_run()
    assert refuse(run, run.server_states["sharing"], make(run)) == reason


def test_a_deal_that_does_not_parse_is_refused() -> None:
    run = recorded_run()
    deals = deals_with(lambda d: (b"\x93\x00", *d[1:]))(run)
    assert refuse(run, run.server_states["sharing"], deals) == "frame-malformed"


@pytest.mark.parametrize(
    "shape", ["nobody", "no evidence", "twice", "wrong order", "itself", "nobody's index"]
)
def test_bad_complaints(shape: str) -> None:
    run = recorded_run()
    inbox, _ = messages.peek(run.client_events["Inbox"].message, messages.Inbox)
    first, second = inbox.deals[:2]
    one, two = (messages.peek(deal, messages.Deal)[0].sender for deal in (first, second))
    accused, evidence = {
        "nobody": ((), ()),
        "no evidence": ((one,), ()),
        "twice": ((one, one), (first, first)),
        "wrong order": ((two, one), (second, first)),
        "itself": ((run.index,), (first,)),
        "nobody's index": ((1000,), (first,)),
    }[shape]
    complaint = messages.Complaint(
        run.aggregator.state.ctx, run.index, accused, evidence, b"n" * 32
    )
    expected = "complaint-evidence" if shape in ("itself", "nobody's index") else None
    reason = refuse(run, run.server_states["checking"], complaint)
    assert reason == (expected or "complaint-malformed")


def test_only_dealers_check() -> None:
    run = recorded_run()
    checking = run.server_states["checking"]
    assert isinstance(checking, server.Checking)
    others = tuple(index for index in checking.dealers if index != run.index)
    state = replace(checking, dealers=others, accepted={})
    assert refuse(run, state, genuine(run, "Ready")) == "not-a-dealer"


@pytest.mark.parametrize(
    "change",
    [
        {"masking_set_digest": bytes(32)},
        {"size_bytes": 0},
        {"size_bytes": 1 << 40},
        {"vector_digest": b"short"},
    ],
)
def test_bad_headers(change: dict[str, object]) -> None:
    run = recorded_run()
    state = replace(run.server_states["masking"], accepted={})
    header = _replace(genuine(run, "MaskedInput"), **change)
    assert refuse(run, state, header) == "masked-input"


def test_only_the_masking_set_uploads() -> None:
    run = recorded_run()
    masking = run.server_states["masking"]
    assert isinstance(masking, server.Masking)
    others = tuple(index for index in masking.masking_set if index != run.index)
    state = replace(masking, masking_set=others, accepted={})
    assert refuse(run, state, genuine(run, "MaskedInput")) == "not-in-masking-set"


@pytest.mark.parametrize("field", ["masking_set_digest", "survivor_set_digest"])
def test_a_confirmation_of_other_sets_is_refused(field: str) -> None:
    run = recorded_run()
    state = replace(run.server_states["confirming"], accepted={})
    message = _replace(genuine(run, "Confirmation"), **{field: bytes(32)})
    assert refuse(run, state, message) == "confirmation"


def test_only_survivors_confirm_and_unmask() -> None:
    run = recorded_run()
    for phase, name, reason in (
        ("confirming", "Confirmation", "confirmation"),
        ("unmasking", "Unmask", "unmask-shares"),
    ):
        before = run.server_states[phase]
        others = tuple(index for index in before.survivors if index != run.index)
        state = replace(before, survivors=others, accepted={})
        assert refuse(run, state, genuine(run, name)) == reason


@pytest.mark.parametrize("name", ["Deals", "Ready", "MaskedInput", "Confirmation", "Unmask"])
def test_a_message_with_another_context_is_refused(name: str) -> None:
    run = recorded_run()
    phase = {
        "Deals": "sharing",
        "Ready": "checking",
        "MaskedInput": "masking",
        "Confirmation": "confirming",
        "Unmask": "unmasking",
    }[name]
    state = replace(run.server_states[phase], accepted={})
    message = _replace(genuine(run, name), ctx=b"x" * 32)
    assert refuse(run, state, message) == "message-context"
