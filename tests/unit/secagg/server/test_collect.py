"""What the aggregator refuses from a device: by reason, naming the sender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from secagg import messages, server
from secagg.context import survivor_set_digest
from secagg.errors import RemoteProtocolError
from secagg.messages import (
    Complaint,
    Confirmation,
    Message,
    Ready,
    Refusal,
)
from secagg.server import collect
from secagg.simulation import EPOCH_S
from tests.kits.asked import (
    CONFIG,
    CTX,
    DEALS,
    DELIVERED,
    EVERYONE,
    FIRST,
    FIRST_DEAL,
    HEADER,
    INDEX,
    MASKING,
    NAME,
    OTHERS,
    RUN,
    SELF,
    STATES,
    SURVIVORS,
)
from tests.kits.protocol_run import CLIENTS, Run, recorded_run
from tests.kits.said import Case, refused

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


# -- reason, both values, the device that is to blame ----------------------------------------------


SEAL, SHARES = len(FIRST_DEAL.sealed_pair_seed), len(FIRST_DEAL.sealed_shares)


def take_deals(**changes: Any) -> None:
    collect.take_deals(STATES["sharing"], INDEX, _replace(DEALS, **changes))


def with_first(**changes: Any) -> tuple[bytes, ...]:
    return (RUN.sign_as_device(_replace(FIRST_DEAL, **changes)), *DEALS.deals[1:])


def take_ready(message: Ready | Complaint, **changes: Any) -> server.Checking:
    return collect.take_ready(replace(STATES["checking"], **changes), INDEX, message)


def complaint(*accused: int, evidence: tuple[bytes, ...] = (DELIVERED,)) -> Complaint:
    return Complaint(CTX, INDEX, accused, evidence, NAME)


def take_header(index: int = INDEX, masking_set: tuple[int, ...] = EVERYONE, **changes: Any) -> Any:
    state = replace(STATES["masking"], masking_set=masking_set)
    return collect.take_masked_input(CONFIG, state, index, _replace(HEADER, **changes))


def take_confirmation(survivors: tuple[int, ...] = EVERYONE, digest: bytes = SURVIVORS) -> None:
    state = replace(STATES["confirming"], survivors=survivors)
    collect.take_confirmation(state, INDEX, Confirmation(CTX, INDEX, MASKING, digest), b"")


def refuse_because_of(entry: int) -> None:
    collect.take_refusal(STATES["sharing"], INDEX, Refusal(CTX, INDEX, "partner-unknown", entry))


REFUSED: dict[str, Case] = {
    "a deal missing": Case(
        lambda: take_deals(deals=DEALS.deals[1:]),
        "deals-count",
        CLIENTS - 1,
        CLIENTS - 2,
        culprit=SELF,
    ),
    "a commitment too many": Case(
        lambda: take_deals(noise_commitments=(b"c",)), "deals-commitments", [], [1], culprit=SELF
    ),
    "a deal for another": Case(
        lambda: take_deals(deals=with_first(recipient=OTHERS[1])),
        "deal-address",
        (INDEX, FIRST),
        (INDEX, OTHERS[1]),
        culprit=SELF,
    ),
    "a deal of another": Case(
        lambda: take_deals(deals=with_first(sender=OTHERS[1])),
        "deal-address",
        (INDEX, FIRST),
        (OTHERS[1], FIRST),
        culprit=SELF,
    ),
    "a deal of a wrong size": Case(
        lambda: take_deals(deals=with_first(share_hashes=(bytes(32), b"h"))),
        "deal-size",
        (SEAL, SHARES, 32, 32),
        (SEAL, SHARES, 32, 1),
        culprit=SELF,
    ),
    "a check of one that did not deal": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME), dealers=OTHERS), "not-a-dealer", culprit=SELF
    ),
    "a second check": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME), answered=frozenset({INDEX})), "message-changed"
    ),
    "a complaint about nobody": Case(
        lambda: take_ready(complaint(evidence=())), "complaint-malformed", culprit=SELF
    ),
    "a complaint out of order": Case(
        lambda: take_ready(complaint(OTHERS[1], FIRST, evidence=(b"", b""))),
        "complaint-malformed",
        culprit=SELF,
    ),
    "a complaint without evidence": Case(
        lambda: take_ready(complaint(FIRST, evidence=())), "complaint-malformed", culprit=SELF
    ),
    "evidence against another": Case(
        lambda: take_ready(complaint(OTHERS[1])), "complaint-evidence", culprit=SELF
    ),
    "evidence against oneself": Case(
        lambda: take_ready(complaint(INDEX)), "complaint-evidence", culprit=SELF
    ),
    "a vector of one outside S": Case(
        lambda: take_header(masking_set=OTHERS), "not-in-masking-set", culprit=SELF
    ),
    "a vector of a wrong size": Case(
        lambda: take_header(size_bytes=1),
        "masked-input",
        (MASKING.hex(), HEADER.size_bytes),
        (MASKING.hex(), 1),
        culprit=SELF,
    ),
    "a vector for another S": Case(
        lambda: take_header(masking_set_digest=b"m"),
        "masked-input",
        (MASKING.hex(), HEADER.size_bytes),
        (b"m".hex(), HEADER.size_bytes),
        culprit=SELF,
    ),
    "a short digest": Case(lambda: take_header(vector_digest=b"d"), "masked-input", culprit=SELF),
    "a confirmation of one outside U": Case(
        lambda: take_confirmation(survivors=OTHERS),
        "confirmation",
        survivor_set_digest(CTX, MASKING, OTHERS).hex(),
        SURVIVORS.hex(),
        culprit=SELF,
    ),
    "a confirmation of another U": Case(
        lambda: take_confirmation(digest=b"u" * 32),
        "confirmation",
        SURVIVORS.hex(),
        (b"u" * 32).hex(),
        culprit=SELF,
    ),
    "a check without a pseudonym": Case(
        lambda: take_ready(Ready(CTX, INDEX)), "pseudonym", 32, 0, culprit=SELF
    ),
    "a pseudonym of 33 bytes": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME + b"n")), "pseudonym", 32, 33, culprit=SELF
    ),
    "another's pseudonym": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME), pseudonyms={FIRST: NAME}),
        "pseudonym",
        32,
        32,
        culprit=SELF,
    ),
    "a complaint without a pseudonym": Case(
        lambda: take_ready(Complaint(CTX, INDEX, (FIRST,), (DELIVERED,))),
        "pseudonym",
        32,
        0,
        culprit=SELF,
    ),
    "a refusal of a roster that was accepted": Case(
        lambda: collect.take_refusal(
            replace(STATES["sharing"], dealt={INDEX: None}), INDEX, Refusal(CTX, INDEX, "r", -1)
        ),
        "refusal-late",
        culprit=SELF,
    ),
    "a refusal because of oneself": Case(
        lambda: refuse_because_of(INDEX),
        "refusal-entry",
        f"another than {INDEX}, below {CLIENTS}",
        INDEX,
        culprit=SELF,
    ),
    "a refusal because of nobody": Case(
        lambda: refuse_because_of(CLIENTS),
        "refusal-entry",
        f"another than {INDEX}, below {CLIENTS}",
        CLIENTS,
        culprit=SELF,
    ),
    "a refusal because of minus two": Case(
        lambda: refuse_because_of(-2),
        "refusal-entry",
        f"another than {INDEX}, below {CLIENTS}",
        -2,
        culprit=SELF,
    ),
    "deals after a refusal": Case(
        lambda: collect.take_deals(
            replace(STATES["sharing"], gone=frozenset({INDEX})), INDEX, DEALS
        ),
        "roster-refused",
        culprit=SELF,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_device_that_breaks_the_rules_is_told_how_and_named(name: str) -> None:
    refused(REFUSED[name])
