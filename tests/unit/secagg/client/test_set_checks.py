"""What a device demands of masking set, survivor set and confirmations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from secagg import client, messages
from secagg.client import checks
from secagg.context import (
    masking_set_digest,
    survivor_set_digest,
)
from secagg.errors import RemoteProtocolError
from secagg.keys import identity_public_key, signing_key
from secagg.messages import Confirmation
from secagg.simulation import EPOCH_S
from tests.kits.protocol_run import Run, recorded_run
from tests.kits.said import Case, refused, said
from tests.kits.shown import (
    CLIENTS,
    CONFIG,
    CTX,
    EVERYONE,
    FIRST,
    INDEX,
    OTHERS,
    RUN,
    SESSION,
    STRANGER,
    removable,
    rules,
)


def after(run: Run, phase: str, message: messages.Message) -> client.State:
    state, _ = client.step(
        run.device.config,
        run.client_states[phase],
        client.Received(run.sign(message), EPOCH_S),
        run.tools(),
    )
    return state


def members_without(run: Run, *gone: int) -> tuple[int, ...]:
    """Roster indices without those ``gone`` steps after one's own."""
    out = {(run.index + step) % CLIENTS for step in gone}
    return tuple(index for index in range(CLIENTS) if index not in out)


@pytest.mark.parametrize(
    ("phase", "kind", "name"),
    [
        ("checked", messages.MaskingSet, "masking-set"),
        ("uploading", messages.SurvivorSet, "survivor-set"),
    ],
)
class TestSets:
    def reason(self, phase: str, kind: type, members: tuple[int, ...]) -> str:
        run = recorded_run()
        state = after(run, phase, kind(run.aggregator.state.ctx, members))
        assert isinstance(state, client.Failed)
        return state.reason

    def test_fewer_are_fine_down_to_the_minimum(self, phase: str, kind: type, name: str) -> None:
        run = recorded_run()
        members = members_without(run, 1)
        state = after(run, phase, kind(run.aggregator.state.ctx, members))
        assert not isinstance(state, client.Failed)

    @pytest.mark.parametrize(
        "members", [(), (1, 0, 2, 3, 4), (0, 0, 1, 2, 3), (0, 1, 2, 3, CLIENTS)]
    )
    def test_malformed(self, phase: str, kind: type, name: str, members: tuple[int, ...]) -> None:
        assert self.reason(phase, kind, members) == f"{name}-malformed"

    def test_without_this_device(self, phase: str, kind: type, name: str) -> None:
        members = members_without(recorded_run(), 0)
        assert self.reason(phase, kind, members) == f"{name}-without-me"

    def test_too_small(self, phase: str, kind: type, name: str) -> None:
        members = members_without(recorded_run(), 1, 2, 3)
        assert self.reason(phase, kind, members) == f"{name}-too-small"


def test_too_few_neighbours_in_the_masking_set() -> None:
    """Enough devices for the manifest, yet fewer neighbours than t = 3."""
    run = recorded_run()
    assert run.client_states["checked"].session.threshold == 3
    state = after(
        run,
        "checked",
        messages.MaskingSet(run.aggregator.state.ctx, members_without(run, 1, 2)),
    )
    assert isinstance(state, client.Failed)
    assert state.reason == "masking-set-neighbours"


def test_survivors_outside_the_masking_set() -> None:
    run = recorded_run()
    uploading = run.client_states["uploading"]
    assert isinstance(uploading, client.Uploading)
    smaller = replace(uploading, masking_set=members_without(run, 1))
    signed = run.sign(messages.SurvivorSet(run.aggregator.state.ctx, tuple(range(CLIENTS))))
    state, _ = client.step(
        run.device.config, smaller, client.Received(signed, EPOCH_S), run.tools()
    )
    assert isinstance(state, client.Failed)
    assert state.reason == "survivor-set-outside"


def test_the_first_message_of_a_kind_stands() -> None:
    run = recorded_run()
    state = run.client_states["awaiting-vector"]
    other = messages.MaskingSet(run.aggregator.state.ctx, members_without(run, 1))
    with pytest.raises(RemoteProtocolError, match="message-changed"):
        client.step(
            run.device.config, state, client.Received(run.sign(other), EPOCH_S), run.tools()
        )


# -- reason, both values ---------------------------------------------------------------------------


def confirmation(index: int, survivors: tuple[int, ...] = EVERYONE, **changes: Any) -> bytes:
    """Device ``index`` confirms; it holds the recorded run's real keys."""
    masking = masking_set_digest(CTX, EVERYONE)
    sets = (masking, survivor_set_digest(CTX, masking, survivors))
    message = msgspec.structs.replace(Confirmation(CTX, index, *sets), **changes)
    number = RUN.aggregator.numbers[index]
    return messages.sign(message, CTX, signing_key(RUN.task.devices[number].identity))


def confirm(*signed: bytes, config: client.ClientConfig = CONFIG, session: Any = SESSION) -> None:
    checks.check_confirmations(config, session, EVERYONE, EVERYONE, signed)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same session on a ring: two neighbours each."""
    monkeypatch.setattr("secagg.graph.harary.COMPLETE_GRAPH_MAX", 3)
    session = replace(SESSION, degree=2, order_seed=bytes(32), threshold=2)
    return replace(session, neighbours=session.graph.neighbours(INDEX))


REFUSED: dict[str, Case] = {
    "a malformed set": Case(
        lambda: checks.check_masking_set(CONFIG, SESSION, (1, 1), OTHERS), "masking-set-malformed"
    ),
    "a set without me": Case(
        lambda: checks.check_survivor_set(CONFIG, SESSION, EVERYONE, OTHERS),
        "survivor-set-without-me",
    ),
    "a set too small": Case(
        lambda: checks.check_masking_set(CONFIG, SESSION, tuple(sorted((INDEX, FIRST))), OTHERS),
        "masking-set-too-small",
        "at least 3",
        2,
    ),
    "a dealer whose deal was bad": Case(
        lambda: checks.check_masking_set(CONFIG, SESSION, EVERYONE, OTHERS[1:]),
        "masking-set-dealer",
        None,
        [FIRST],
    ),
    "too few neighbours mask": Case(
        lambda: checks.check_masking_set(
            CONFIG, replace(SESSION, threshold=CLIENTS), EVERYONE, OTHERS
        ),
        "masking-set-neighbours",
        f"at least {CLIENTS}",
        CLIENTS - 1,
    ),
    "a survivor that did not mask": Case(
        lambda: checks.check_survivor_set(
            CONFIG, SESSION, tuple(i for i in EVERYONE if i != FIRST), EVERYONE
        ),
        "survivor-set-outside",
        None,
        [FIRST],
    ),
    "more drop-outs than the noise makes up for": Case(
        lambda: checks.check_survivor_set(
            removable(1), SESSION, EVERYONE, tuple(sorted((INDEX, *OTHERS[:2])))
        ),
        "survivor-set-noise",
        "at most 1",
        2,
    ),
    "a confirmation of a stranger": Case(
        lambda: confirm(
            messages.sign(Confirmation(CTX, FIRST, b"", b""), CTX, signing_key(STRANGER))
        ),
        "confirmation-signer",
        None,
        identity_public_key(STRANGER).hex(),
    ),
    "a confirmation of other sets": Case(
        lambda: confirm(confirmation(FIRST, survivor_set_digest=b"u" * 32)),
        "confirmations-differ",
        survivor_set_digest(CTX, masking_set_digest(CTX, EVERYONE), EVERYONE).hex(),
        (b"u" * 32).hex(),
    ),
    "too few confirmations": Case(
        lambda: confirm(*(confirmation(index) for index in OTHERS[:2])),
        "confirmations-too-few",
        "at least 3",
        2,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_demand_that_is_not_met(name: str) -> None:
    refused(REFUSED[name])


def test_the_genuine_sets_pass_and_so_do_their_bounds() -> None:
    checks.check_masking_set(CONFIG, SESSION, EVERYONE, OTHERS)
    checks.check_survivor_set(removable(2), SESSION, EVERYONE, tuple(sorted((INDEX, *OTHERS[:2]))))
    confirm(*(confirmation(index) for index in OTHERS[:3]))


def test_on_a_ring_more_than_half_of_the_roster_must_confirm(ring: Any) -> None:
    near = ring.neighbours
    far = [index for index in OTHERS if index not in near]
    assert len(near) == len(far) == 2
    config = rules(corrupt_max=1)
    needed = (CLIENTS + 1) // 2 + 1
    assert needed == 4
    some = [confirmation(index) for index in (*near, far[0])]
    with pytest.raises(RemoteProtocolError) as caught:
        confirm(*some, config=config, session=ring)
    assert said(caught.value) == ("confirmations-too-few", f"at least {needed}", 3)
    confirm(*some, confirmation(far[1]), config=config, session=ring)


@pytest.mark.parametrize("far_first", [False, True])
def test_on_a_ring_every_confirmation_that_counts_is_verified(ring: Any, far_first: bool) -> None:
    near = list(ring.neighbours)
    far = [index for index in OTHERS if index not in near]
    order = [*far, *near] if far_first else [*near, *far]
    for forged in order:
        signed = {index: confirmation(index) for index in order}
        signed[forged] = signed[forged][:-1] + bytes([signed[forged][-1] ^ 1])
        with pytest.raises(RemoteProtocolError) as caught:
            confirm(*signed.values(), config=rules(corrupt_max=1), session=ring)
        assert caught.value.reason == "signature-invalid"
