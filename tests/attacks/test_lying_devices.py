"""Devices that lie in shares, deals or complaints cost at most themselves, and are named."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import pytest

from secagg import client, messages, server, sharing
from secagg.client import deals
from secagg.context import KIND_SHARES, seal_info
from secagg.graph import harary
from secagg.keys import signing_key
from secagg.messages import Message
from secagg.secret import Secret
from secagg.server import collect, unmask
from secagg.simulation import CohortResult, Drop, Hooks, SimulatedTask, make_devices, run_cohort
from tests.kits.corrupt import (
    CLIENTS,
    LIAR,
    assert_released_without,
    identity,
    one_hot,
    rewriting,
    task,
)

# -- wrong shares --------------------------------------------------------------------------------


def lying_share(message: Message, ctx: bytes) -> Message | None:
    if not isinstance(message, messages.Unmask):
        return None
    first, *rest = message.shares
    wrong = msgspec.structs.replace(first, share=b"\x07" + first.share[1:])
    return msgspec.structs.replace(message, shares=(wrong, *rest))


def test_a_lying_holder_is_named_and_its_share_ignored() -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, lying_share))
    assert_released_without(result)
    assert result.ended == server.Ended(None, (identity(shown),))


def test_without_share_hashes_a_liar_stops_the_cohort_and_another_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened build takes every share as it comes."""

    class Anything(bytes):
        pass

    def weakened(found: bytes, wanted: bytes) -> bool:
        return isinstance(found, Anything) or hmac.compare_digest(found, wanted)

    monkeypatch.setattr(unmask, "share_hash", lambda *_: Anything())
    monkeypatch.setattr(unmask, "hmac", SimpleNamespace(compare_digest=weakened))
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, lying_share))
    assert isinstance(result.state, server.Aborted)
    assert result.ended.culprits != ()
    assert identity(shown) not in result.ended.culprits


@pytest.mark.parametrize("lie", ["kind", "owner", "missing", "twice", "short"])
def test_a_malformed_unmask_answer_costs_only_its_sender(lie: str) -> None:
    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Unmask):
            return None
        first, *rest = message.shares
        changed = {
            "kind": (msgspec.structs.replace(first, kind=1 - first.kind), *rest),
            "owner": (msgspec.structs.replace(first, owner=message.index), *rest),
            "missing": tuple(rest),
            "twice": (first, first, *rest),
            "short": (msgspec.structs.replace(first, share=first.share[:-1]), *rest),
        }[lie]
        return msgspec.structs.replace(message, shares=changed)

    shown = task()
    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    assert_released_without(result)
    if lie == "short":
        assert result.ended.culprits == (identity(shown),)
    else:
        assert (LIAR, "unmask-shares") in result.refused


# -- dealers that lie ----------------------------------------------------------------------------


def dealing_another_self_seed(
    shown: SimulatedTask, monkeypatch: pytest.MonkeyPatch
) -> CohortResult:
    """The corrupt device shares a seed that is not the one it masks with."""
    genuine = sharing.split
    devices = make_devices(shown, one_hot())
    seed = devices[LIAR].state.self_seed

    def split(secret, threshold, holders, random_bytes):
        other = Secret(b"z" * 32) if secret is seed else secret
        return genuine(other, threshold, holders, random_bytes)

    monkeypatch.setattr(sharing, "split", split)
    return run_cohort(shown, one_hot(), devices=devices)


def test_a_dealer_of_another_self_seed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = task()
    result = dealing_another_self_seed(shown, monkeypatch)
    assert isinstance(result.state, server.Aborted)
    assert result.ended == server.Ended("dealer-self-seed", (identity(shown),))


def test_without_commitments_the_lying_dealer_stays_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unmask, "is_committed", lambda *_: True)
    result = dealing_another_self_seed(task(), monkeypatch)
    assert isinstance(result.state, server.Aborted)
    assert result.ended == server.Ended("check-coordinates", ())


def test_a_dropped_dealer_of_another_mask_secret_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = sharing.split
    shown = task()
    devices = make_devices(shown, one_hot(), drops={LIAR: Drop.UPLOAD})
    secret_of_liar = devices[LIAR].state.mask_secret

    def split(secret, threshold, holders, random_bytes):
        other = Secret(b"z" * 32) if secret is secret_of_liar else secret
        return genuine(other, threshold, holders, random_bytes)

    monkeypatch.setattr(sharing, "split", split)
    result = run_cohort(shown, one_hot(), devices=devices)
    assert result.ended == server.Ended("dealer-mask-secret", (identity(shown),))


def test_a_share_that_does_not_match_its_hash_is_refused_at_once() -> None:
    """The dealer is left out before anybody masks with it; everyone else is in the sum."""

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Deals):
            return None
        key = signing_key(shown.devices[LIAR].identity)
        deal, _ = messages.peek(message.deals[0], messages.Deal)
        wrong = msgspec.structs.replace(deal, share_hashes=(bytes(32), deal.share_hashes[1]))
        return messages.Deals(ctx, (messages.sign(wrong, ctx, key), *message.deals[1:]), ())

    shown = task()
    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    assert_released_without(result, LIAR)


def test_without_checking_hashes_a_bad_dealer_is_found_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened device takes any share; the honest holder is then blamed for it."""

    def decrypt_shares(session, deal, channel_key, noise_levels):
        info = seal_info(
            session.ctx,
            session.identity_keys[deal.sender],
            session.identity_keys[session.index],
            KIND_SHARES,
        )
        both = deals.sealing.hpke_open(channel_key, info, deal.sealed_shares)
        return client.HeldShares(of_self_seed=Secret(both[:33]), of_mask_secret=Secret(both[33:]))

    monkeypatch.setattr(deals, "decrypt_shares", decrypt_shares)
    shown = task()
    key = signing_key(shown.devices[LIAR].identity)

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Deals):
            return None
        deal, _ = messages.peek(message.deals[0], messages.Deal)
        wrong = msgspec.structs.replace(deal, share_hashes=(bytes(32), deal.share_hashes[1]))
        return messages.Deals(ctx, (messages.sign(wrong, ctx, key), *message.deals[1:]), ())

    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    assert len(result.ended.culprits) == 1
    assert identity(shown) not in result.ended.culprits


def test_a_seed_that_only_a_colluder_accepts_is_pinned_on_its_sealer() -> None:
    """The sealer seals rubbish, the other end says ready and drops: its mask cannot come off."""
    shown = task()
    order = sorted(range(CLIENTS), key=lambda number: identity(shown, number))
    liar = order.index(LIAR)
    colluder = next(i for i in range(CLIENTS) if i != liar and harary.sealer(liar, i) == liar)
    key = signing_key(shown.devices[LIAR].identity)
    colluder_key = signing_key(shown.devices[order[colluder]].identity)

    def upward(number: int, signed: bytes) -> list[bytes]:
        message, _ = messages.peek(signed, *messages.KINDS)
        if number == LIAR and isinstance(message, messages.Deals):
            place = harary.neighbours(liar, CLIENTS).index(colluder)
            deal, _ = messages.peek(message.deals[place], messages.Deal)
            rubbish = msgspec.structs.replace(
                deal, sealed_pair_seed=bytes(len(deal.sealed_pair_seed))
            )
            changed = list(message.deals)
            changed[place] = messages.sign(rubbish, message.ctx, key)
            return [
                messages.sign(messages.Deals(message.ctx, tuple(changed), ()), message.ctx, key)
            ]
        if isinstance(message, messages.Complaint):
            ready = messages.Ready(message.ctx, message.index, message.pseudonym)
            return [messages.sign(ready, message.ctx, colluder_key)]
        return [signed]

    result = run_cohort(shown, one_hot(), hooks=Hooks(upward=upward))
    assert result.ended == server.Ended("seal-invalid", (identity(shown),))


# -- complaints ----------------------------------------------------------------------------------


def accusing(shown: SimulatedTask, count: int, *, evidence: Callable[[bytes], bytes]) -> Hooks:
    """The corrupt device claims that ``count`` dealers' good deals are bad."""
    inbox: list[bytes] = []

    def downward(number: int, signed: bytes) -> list[bytes]:
        message, _ = messages.peek(signed, *messages.KINDS)
        if number == LIAR and isinstance(message, messages.Inbox):
            inbox[:] = message.deals
        return [signed]

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Ready):
            return None
        named = inbox[:count]
        accused = tuple(messages.peek(deal, messages.Deal)[0].sender for deal in named)
        shown = tuple(map(evidence, named))
        return messages.Complaint(ctx, message.index, accused, shown, message.pseudonym)

    hooks = rewriting(shown, change)
    hooks.downward = downward
    return hooks


def test_an_accuser_of_more_than_may_be_corrupt_is_left_out_itself() -> None:
    shown = task()
    hooks = accusing(shown, 5, evidence=lambda deal: deal)
    result = run_cohort(shown, one_hot(), hooks=hooks)
    assert_released_without(result, LIAR)
    assert result.ended.culprits == (identity(shown),)


def test_without_that_limit_one_accuser_ends_the_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(config, state):
        out = frozenset().union(*state.accusations.values())
        return tuple(sorted(state.answered - out)), frozenset()

    monkeypatch.setattr(collect, "ready_devices", believe)
    shown = task()
    hooks = accusing(shown, 5, evidence=lambda deal: deal)
    result = run_cohort(shown, one_hot(), hooks=hooks)
    assert result.ended.reason == "too-few-ready"


def test_a_disputed_dealer_is_left_out_but_not_called_guilty() -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=accusing(shown, 1, evidence=lambda deal: deal))
    assert isinstance(result.state, server.Released)
    assert len(result.survivors) == CLIENTS - 1
    assert LIAR in result.survivors
    assert result.ended.culprits == ()


def test_evidence_that_was_not_delivered_accuses_nobody() -> None:
    shown = task()
    hooks = accusing(shown, 1, evidence=lambda deal: deal[:-1] + bytes([deal[-1] ^ 1]))
    result = run_cohort(shown, one_hot(), hooks=hooks)
    assert (LIAR, "complaint-evidence") in result.refused
    assert_released_without(result, LIAR)


def test_a_deal_with_a_broken_signature_proves_its_dealers_guilt() -> None:
    shown = task()
    key = signing_key(shown.devices[LIAR].identity)

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Deals):
            return None
        broken = []
        for signed in message.deals:
            _, envelope = messages.peek(signed, messages.Deal)
            wrong = key.sign(b"something else").signature
            broken.append(
                msgspec.msgpack.encode(messages.Signed(envelope.frame, envelope.signer, wrong))
            )
        return messages.Deals(ctx, tuple(broken), ())

    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    assert_released_without(result, LIAR)
    assert result.ended.culprits == (identity(shown),)


def test_a_sealer_that_seals_no_seed_is_left_out() -> None:
    shown = task()
    key = signing_key(shown.devices[LIAR].identity)

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Deals):
            return None
        changed = []
        for signed in message.deals:
            deal, _ = messages.peek(signed, messages.Deal)
            if deal.sealed_pair_seed:
                deal = msgspec.structs.replace(
                    deal, sealed_pair_seed=bytes(len(deal.sealed_pair_seed))
                )
            changed.append(messages.sign(deal, ctx, key))
        return messages.Deals(ctx, tuple(changed), ())

    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    assert_released_without(result, LIAR)
