"""Each demand that a device makes of the aggregator, by the reason of its refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from secagg import client, messages
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.keys import signing_key
from secagg.messages import AdmittedModel, Roster
from secagg.simulation import EPOCH_S, make_task, seeded_tools
from tests.kits.protocol_run import CLIENTS, Run, recorded_run, secrets_in

_replace = msgspec.structs.replace


def roster_of(run: Run) -> Roster:
    event = run.client_events["Roster"]
    assert isinstance(event, client.Received)
    return messages.peek(event.message, Roster)[0]


def show(
    run: Run, roster: Roster, *, config: client.ClientConfig | None = None, now_s: float = EPOCH_S
) -> client.State:
    signed = run.sign(roster, ctx=b"")
    state, effects = client.step(
        config or run.device.config,
        run.client_states["advertised"],
        client.Received(signed, now_s),
        run.tools(),
    )
    if isinstance(state, client.Failed):
        *said, failed = effects
        assert failed == state
        assert secrets_in(state) == []
        for sent in said:
            assert_says_why(run, roster, state, sent)
    return state


def assert_says_why(run: Run, roster: Roster, state: client.Failed, sent: client.Effect) -> None:
    """The device signs, in the context of the roster that it was shown, why it refuses it."""
    assert isinstance(sent, client.Send)
    claimed, _ = messages.peek(sent.message, messages.Refusal)
    own = run.device.config.certificate.identity_key
    refusal, _ = messages.verify(sent.message, claimed.ctx, messages.Refusal, signer=own)
    assert (refusal.index, refusal.reason) == (roster.index, state.reason)
    if refusal.entry >= 0:
        assert roster.entries[refusal.entry].identity_key == state.culprit
    if roster == roster_of(run):
        assert refusal.ctx == run.aggregator.state.ctx


# -- the roster ----------------------------------------------------------------------------------


def test_the_genuine_roster_is_accepted() -> None:
    run = recorded_run()
    assert isinstance(show(run, roster_of(run)), client.Shared)


NOT_FOR_THIS_EXCHANGE: dict[str, Callable[[Roster], Roster]] = {
    "roster-index": lambda roster: _replace(roster, index=CLIENTS),
    "roster-not-mine": lambda roster: _replace(roster, index=(roster.index + 1) % CLIENTS),
}


@pytest.mark.parametrize("reason", NOT_FOR_THIS_EXCHANGE)
def test_a_roster_that_does_not_list_ones_advert_changes_nothing(reason: str) -> None:
    run = recorded_run()
    with pytest.raises(RemoteProtocolError, match=reason):
        show(run, NOT_FOR_THIS_EXCHANGE[reason](roster_of(run)))


def test_ones_own_entry_must_be_ones_own_advert() -> None:
    run = recorded_run()
    roster = roster_of(run)
    entries = list(roster.entries)
    entries[roster.index] = _replace(entries[roster.index], advert_digest=bytes(32))
    with pytest.raises(RemoteProtocolError, match="roster-not-mine"):
        show(run, _replace(roster, entries=tuple(entries)))


def with_entry(place: int, **changes: bytes) -> Callable[[Roster], Roster]:
    """Change the entry ``place`` steps after one's own."""

    def change(roster: Roster) -> Roster:
        entries = list(roster.entries)
        index = (roster.index + place) % CLIENTS
        entries[index] = _replace(entries[index], **changes)
        return _replace(roster, entries=tuple(entries))

    return change


def without_last(roster: Roster) -> Roster:
    others = [i for i in range(CLIENTS) if i != roster.index]
    gone = others[-1]
    entries = tuple(entry for i, entry in enumerate(roster.entries) if i != gone)
    adverts = tuple((i - (i > gone), advert) for i, advert in roster.neighbour_adverts if i != gone)
    index = roster.index - (roster.index > gone)
    return _replace(roster, entries=entries, neighbour_adverts=adverts, index=index)


def swapped(roster: Roster) -> Roster:
    """Two others change places, digests and adverts alike."""
    first, second = [i for i in range(CLIENTS) if i != roster.index][:2]
    entries = list(roster.entries)
    entries[first], entries[second] = entries[second], entries[first]
    adverts = dict(roster.neighbour_adverts)
    adverts[first], adverts[second] = adverts[second], adverts[first]
    return _replace(
        roster, entries=tuple(entries), neighbour_adverts=tuple(sorted(adverts.items()))
    )


def doubled(roster: Roster) -> Roster:
    """One neighbour takes another's place too."""
    first, second = [i for i in range(CLIENTS) if i != roster.index][:2]
    entries = list(roster.entries)
    entries[second] = entries[first]
    adverts = dict(roster.neighbour_adverts)
    adverts[second] = adverts[first]
    return _replace(
        roster, entries=tuple(entries), neighbour_adverts=tuple(sorted(adverts.items()))
    )


ENDS_THE_EXCHANGE: dict[str, tuple[str, Callable[[Roster], Roster]]] = {
    "another task": ("roster-manifest", lambda r: _replace(r, task="other")),
    "another manifest": ("roster-manifest", lambda r: _replace(r, manifest_digest=bytes(32))),
    "a short cohort name": ("roster-malformed", lambda r: _replace(r, cohort=b"c")),
    "another model": (
        "roster-models",
        lambda r: _replace(r, models=(AdmittedModel(0, bytes(32)),)),
    ),
    "no model": ("roster-models", lambda r: _replace(r, models=())),
    "a model twice": ("roster-models", lambda r: _replace(r, models=r.models * 2)),
    "too few devices": ("cohort-size", without_last),
    "wrong order": ("roster-order", swapped),
    "a device twice": ("roster-order", doubled),
    "a short key": ("roster-malformed", with_entry(1, identity_key=b"short")),
    "a short digest": ("roster-malformed", with_entry(1, advert_digest=b"short")),
    "another advert": ("roster-advert", with_entry(1, advert_digest=b"d" * 32)),
    "a missing neighbour": (
        "roster-neighbours",
        lambda r: _replace(r, neighbour_adverts=r.neighbour_adverts[1:]),
    ),
    "a neighbour twice": (
        "roster-neighbours",
        lambda r: _replace(
            r, neighbour_adverts=(r.neighbour_adverts[0], *r.neighbour_adverts[:-1])
        ),
    ),
}


@pytest.mark.parametrize("case", ENDS_THE_EXCHANGE)
def test_a_roster_against_the_rules_ends_the_exchange(case: str) -> None:
    reason, change = ENDS_THE_EXCHANGE[case]
    run = recorded_run()
    state = show(run, change(roster_of(run)))
    assert isinstance(state, client.Failed)
    assert state.reason == reason


def test_a_roster_after_the_advert_expired_ends_the_exchange() -> None:
    run = recorded_run()
    state = show(run, roster_of(run), now_s=EPOCH_S + 10_000)
    assert isinstance(state, client.Failed)
    assert state.reason == "advert-expired"


@pytest.mark.parametrize("known", [frozenset(), frozenset({b"p" * 32})])
def test_the_devices_own_partners_decide(known: frozenset[bytes]) -> None:
    run = recorded_run()
    config = replace(run.device.config, partner_keys=known)
    state = show(run, roster_of(run), config=config)
    assert isinstance(state, client.Failed)
    assert state.reason == "partner-unknown"
    assert state.culprit is not None


@pytest.mark.parametrize("minimum", [CLIENTS + 1, 1000])
def test_the_devices_own_minimum_decides(minimum: int) -> None:
    run = recorded_run()
    config = replace(run.device.config, survivors_min=minimum)
    state = show(run, roster_of(run), config=config)
    assert isinstance(state, client.Failed)
    assert state.reason == "cohort-size"


def test_a_roster_signed_by_another_key_changes_nothing() -> None:
    run = recorded_run()
    other = make_task(CLIENTS, 5, seed=9)
    signed = messages.sign(roster_of(run), b"", signing_key(other.server.task_key))
    with pytest.raises(RemoteProtocolError, match="signer-unexpected"):
        client.step(
            run.device.config,
            run.client_states["advertised"],
            client.Received(signed, EPOCH_S),
            run.tools(),
        )


# -- masking set and survivor set ------------------------------------------------------------------


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


def test_an_abort_of_another_cohort_changes_nothing() -> None:
    run = recorded_run()
    signed = run.sign(messages.Abort(b"other" * 6 + b"xx", "too-few-vectors"))
    with pytest.raises(RemoteProtocolError, match="message-context"):
        client.step(
            run.device.config,
            run.client_states["shared"],
            client.Received(signed, EPOCH_S),
            run.tools(),
        )


# -- the vector ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.ones(6, "<u4"), "vector-shape"),
        (np.ones((7, 1), "<u4"), "vector-shape"),
        (np.ones(7, "<u8"), "vector-shape"),
        (np.ones(7, np.int64), "vector-shape"),
        (np.zeros(7, "<u4"), "vector-checks"),
    ],
)
def test_a_vector_that_is_not_the_payload_is_a_misuse(vector: np.ndarray, reason: str) -> None:
    run = recorded_run()
    state = run.client_states["awaiting-vector"]
    with pytest.raises(LocalProtocolError, match=reason):
        client.step(run.device.config, state, client.VectorReady(vector), run.tools())


def test_a_second_vector_is_never_masked() -> None:
    """Two vectors under one mask would show their difference."""
    run = recorded_run()
    event = run.client_events["VectorReady"]
    with pytest.raises(LocalProtocolError, match="vector-not-due"):
        client.step(run.device.config, run.client_states["uploading"], event, run.tools())


def test_masking_leaves_the_given_vector_as_it_is() -> None:
    run = recorded_run()
    event = run.client_events["VectorReady"]
    assert isinstance(event, client.VectorReady)
    before = event.vector.copy()
    client.step(run.device.config, run.client_states["awaiting-vector"], event, run.tools())
    assert np.array_equal(event.vector, before)


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "gone"),
    [
        ("checked", ("mask_secret", "channel_secret")),
        ("awaiting-vector", ("mask_secret", "channel_secret")),
        ("uploading", ("mask_secret", "channel_secret", "self_seed", "pair_seeds")),
        ("confirmed", ("mask_secret", "channel_secret", "self_seed", "pair_seeds")),
    ],
)
def test_secrets_leave_as_early_as_they_can(phase: str, gone: tuple[str, ...]) -> None:
    held = secrets_in(recorded_run().client_states[phase])
    assert held
    assert not any(f".{name}" in path for name in gone for path in held)


@pytest.mark.parametrize("phase", ["unmasked", "finished"])
def test_nothing_secret_is_left_at_the_end(phase: str) -> None:
    assert secrets_in(recorded_run().client_states[phase]) == []


@pytest.mark.parametrize("phase", list(recorded_run().client_states))
def test_no_state_or_effect_prints_a_secret(phase: str) -> None:
    run = recorded_run()
    state = run.client_states[phase]
    text = repr(state)
    for name in ("mask_secret", "self_seed", "channel_secret"):
        secret = getattr(state, name, None)
        if secret is not None:
            assert repr(secret.reveal())[2:-1] not in text
            assert secret.reveal().hex() not in text
    event = run.client_events["Confirmations"]
    _, (send,) = client.step(
        run.device.config, run.client_states["confirmed"], event, seeded_tools(1)
    )
    assert repr(send) == "Send()"
