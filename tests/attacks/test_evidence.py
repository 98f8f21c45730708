"""Evidence convicts who lied and nobody else, also when an aggregator forges it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from secagg import evidence, messages, server, sharing
from secagg.context import SHARE_OF_MASK_SECRET, SHARE_OF_SELF_SEED
from secagg.errors import RemoteProtocolError
from secagg.evidence import Evidence, decode_evidence, encode_evidence, verify_evidence
from secagg.keys import signing_key
from secagg.manifest import encode_manifest
from secagg.messages import Message
from secagg.secret import Secret
from secagg.server.convicting import gather_evidence
from secagg.simulation import (
    CohortResult,
    Drop,
    Hooks,
    SimulatedTask,
    make_devices,
    make_task,
    run_cohort,
)
from secagg.simulation.cohort import Aggregator, LocalDevices, drive
from tests.kits.adversary import Adversary
from tests.kits.corrupt import CLIENTS, LIAR, identity, one_hot, rewriting, task

replace = msgspec.structs.replace


def gathered(shown: SimulatedTask, result: CohortResult) -> list[tuple[server.Finding, bytes]]:
    received = [(e.index, e.message) for e in result.events if isinstance(e, server.Received)]
    adverts = [device.advert for device in make_devices(shown, one_hot())]
    return gather_evidence(result.state, encode_manifest(shown.manifest), adverts, received)


def sharing_another(
    shown: SimulatedTask, monkeypatch: pytest.MonkeyPatch, name: str, drop: Drop = Drop.NEVER
) -> CohortResult:
    """The corrupt device shares another secret than the one that it committed to."""
    genuine = sharing.split
    devices = make_devices(shown, one_hot(), drops={LIAR: drop})
    own = getattr(devices[LIAR].state, name)

    def split(secret: Secret, *rest: Any) -> Any:
        return genuine(Secret(b"z" * 32) if secret is own else secret, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(sharing, "split", split)
        return run_cohort(shown, one_hot(), devices=devices)


@pytest.mark.parametrize(
    ("name", "drop", "kind"),
    [
        ("self_seed", Drop.NEVER, evidence.DEALER_SELF_SEED),
        ("mask_secret", Drop.UPLOAD, evidence.DEALER_MASK_SECRET),
    ],
)
def test_a_lying_dealer_is_convicted_by_its_own_signatures(
    monkeypatch: pytest.MonkeyPatch, name: str, drop: Drop, kind: str
) -> None:
    shown = task()
    result = sharing_another(shown, monkeypatch, name, drop)
    ((finding, data),) = gathered(shown, result)
    verdict = verify_evidence(data)
    assert (verdict.identity, verdict.kind) == (identity(shown), kind)
    assert verdict.partner == shown.devices[LIAR].certificate.partner_key
    assert verdict.transferable
    assert verdict.ctx == result.state.ctx
    assert finding.kind == kind == result.ended.reason


def test_the_shares_in_evidence_are_the_liars_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No share of another device, revealed or sealed for it, is in the bytes that others get."""
    shown = task()
    result = sharing_another(shown, monkeypatch, "self_seed")
    ((finding, data),) = gathered(shown, result)
    others = [
        share.share
        for event in result.events
        if isinstance(event, server.Received)
        for message, _ in [messages.peek(event.message, *messages.KINDS)]
        if isinstance(message, messages.Unmask)
        for share in message.shares
        if share.owner != finding.device
    ]
    assert len(others) >= CLIENTS
    assert not [share for share in others if share in data]


def test_two_liars_cost_one_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = task()
    devices = make_devices(shown, one_hot())
    seeds = [devices[number].state.self_seed for number in (LIAR, LIAR + 1)]
    genuine = sharing.split

    def split(secret: Secret, *rest: Any) -> Any:
        lies = any(secret is seed for seed in seeds)
        return genuine(Secret(b"z" * 32) if lies else secret, *rest)

    monkeypatch.setattr(sharing, "split", split)
    result = run_cohort(shown, one_hot(), devices=devices)
    convicted = {verify_evidence(data).identity for _, data in gathered(shown, result)}
    assert convicted == {identity(shown, LIAR), identity(shown, LIAR + 1)}


def test_a_dealer_that_commits_to_another_noise_seed_is_convicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = make_task(
        CLIENTS, CLIENTS, slice_length=4, survivors_min=4, corrupt_max=1, removable_drops=(1, 2)
    )

    def change(message: Message, ctx: bytes) -> Message | None:
        if not isinstance(message, messages.Deals):
            return None
        return replace(message, noise_commitments=(bytes(32), message.noise_commitments[1]))

    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, change))
    ((_, data),) = gathered(shown, result)
    assert verify_evidence(data)[:2] == (identity(shown), evidence.DEALER_NOISE_SEED)


def breaking_signatures(shown: SimulatedTask) -> Hooks:
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

    return rewriting(shown, change)


def test_a_deal_that_its_dealer_did_not_sign_convicts_the_dealer() -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=breaking_signatures(shown))
    ((_, data),) = gathered(shown, result)
    assert verify_evidence(data)[:2] == (identity(shown), evidence.DEAL_SIGNATURE)
    assert verify_evidence(data).transferable


def lying_share(message: Message, ctx: bytes) -> Message | None:
    if not isinstance(message, messages.Unmask):
        return None
    first, *rest = message.shares
    return replace(message, shares=(replace(first, share=b"\x07" + first.share[1:]), *rest))


def test_a_holder_that_changed_a_share_is_convicted_before_who_delivered_the_deals() -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), hooks=rewriting(shown, lying_share))
    ((_, data),) = gathered(shown, result)
    verdict = verify_evidence(data, delivered=True)
    assert (verdict.identity, verdict.kind) == (identity(shown), evidence.UNMASK_SHARE)
    assert not verdict.transferable
    refused(data, "evidence-not-transferable")


def test_fewer_answers_are_kept_than_open_a_secret() -> None:
    """However many holders lie: t answers would give every survivor's self seed to a reader."""
    shown = task()
    keys = {number: signing_key(device.identity) for number, device in enumerate(shown.devices)}

    def upward(number: int, signed: bytes) -> list[bytes]:
        message, _ = messages.peek(signed, *messages.KINDS)
        changed = lying_share(message, b"")
        return [signed] if changed is None else [messages.sign(changed, changed.ctx, keys[number])]

    result = run_cohort(shown, one_hot(), hooks=Hooks(upward=upward))
    assert len(result.state.culprits) == CLIENTS
    assert len(gathered(shown, result)) == result.state.facts.threshold - 1


# -- an aggregator that forges evidence against an honest device -----------------------------------


@pytest.fixture(scope="module")
def honest() -> tuple[SimulatedTask, CohortResult]:
    shown = task()
    return shown, run_cohort(shown, one_hot())


def against(honest: tuple[SimulatedTask, CohortResult], **changes: Any) -> Evidence:
    """What an aggregator has of an honest device after a cohort: the device's deals and t of its
    opened shares, put together as evidence."""
    shown, result = honest
    facts = result.state.facts
    index = [entry.identity_key for entry in facts.roster].index(identity(shown))
    adverts = {
        messages.peek(d.advert, messages.Advert)[0].certificate.identity_key: d.advert
        for d in make_devices(shown, one_hot())
    }
    deals = next(
        event.message
        for event in result.events
        if isinstance(event, server.Received)
        and event.index == index
        and isinstance(messages.peek(event.message, *messages.KINDS)[0], messages.Deals)
    )
    opened = {}
    for event in result.events:
        if isinstance(event, server.Received):
            message, _ = messages.peek(event.message, *messages.KINDS)
            if isinstance(message, messages.Unmask):
                for share in message.shares:
                    if share.owner == index and share.kind == SHARE_OF_SELF_SEED:
                        opened[event.index] = share.share
    fields = {
        "kind": evidence.DEALER_SELF_SEED,
        "manifest": encode_manifest(shown.manifest),
        "cohort": facts.cohort,
        "attempt": facts.attempt,
        "models": facts.models,
        "entries": facts.roster,
        "device": index,
        "advert": adverts[identity(shown)],
        "message": deals,
        "secret": SHARE_OF_SELF_SEED,
        "shares": tuple(sorted(opened.items())[: facts.threshold]),
    }
    return Evidence(**{**fields, **changes})


def refused(data: bytes | Evidence, reason: str, **terms: Any) -> None:
    encoded = data if isinstance(data, bytes) else encode_evidence(data)
    with pytest.raises(RemoteProtocolError) as caught:
        verify_evidence(encoded, **terms)
    assert caught.value.reason == reason


def test_an_honest_dealers_own_shares_do_not_convict_it(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    refused(against(honest), "evidence-innocent")


def test_another_exchanges_advert_does_not_convict(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    """Deals of one exchange and the advert of another: each genuine, together a lie."""
    shown, result = honest
    other = make_devices(shown, one_hot(), seed=9)[LIAR].advert
    refused(against(honest, advert=other), "evidence-not-bound")
    entries = list(result.state.facts.roster)
    own = against(honest).device
    entries[own] = replace(entries[own], advert_digest=evidence.advert_digest(other))
    refused(against(honest, advert=other, entries=tuple(entries)), "evidence-not-bound")


def test_fewer_or_more_shares_than_the_threshold_do_not_convict(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    """t - 1 points of an honest polynomial give any secret."""
    whole = against(honest)
    refused(replace(whole, shares=whole.shares[:-1]), "evidence-not-bound")
    twice = (whole.shares[0], *whole.shares[:-1])
    refused(replace(whole, shares=twice), "evidence-not-bound")


def test_a_manifest_with_another_threshold_does_not_convict(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    shown, _ = honest
    weaker = replace(shown.manifest, cohort=replace(shown.manifest.cohort, corrupt_max=0))
    whole = against(honest, manifest=encode_manifest(weaker))
    refused(replace(whole, shares=whole.shares[:-1]), "evidence-not-bound")


def test_a_share_that_the_dealer_did_not_deal_does_not_convict(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    whole = against(honest)
    (holder, share), *rest = whole.shares
    made_up = ((holder, bytes([share[0] ^ 1]) + share[1:]), *rest)
    refused(replace(whole, shares=made_up), "evidence-not-bound")
    swapped = ((holder, rest[0][1]), *rest)
    refused(replace(whole, shares=swapped), "evidence-not-bound")


def test_shares_of_one_secret_do_not_convict_of_another(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    whole = against(honest)
    kinds = {"kind": evidence.DEALER_MASK_SECRET, "secret": SHARE_OF_MASK_SECRET}
    refused(replace(whole, **kinds), "evidence-not-bound")
    refused(replace(whole, kind=evidence.DEALER_MASK_SECRET), "evidence-malformed")
    refused(replace(whole, secret=2), "evidence-malformed")


def test_deals_signed_by_somebody_else_do_not_convict(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    shown, _ = honest
    whole = against(honest)
    message, _ = messages.peek(whole.message, messages.Deals)
    ctx = message.ctx
    forged = messages.sign(message, ctx, signing_key(shown.server.task_key))
    refused(replace(whole, message=forged), "evidence-not-bound")


def test_another_roster_or_cohort_does_not_convict(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    """The accused's signature is bound to everything that gives the exchange's ctx."""
    whole = against(honest)
    refused(replace(whole, cohort=b"o" * 32), "evidence-not-bound")
    refused(replace(whole, attempt=1), "evidence-not-bound")
    refused(replace(whole, entries=tuple(reversed(whole.entries))), "evidence-malformed")
    refused(replace(whole, device=(whole.device + 1) % CLIENTS), "evidence-not-bound")
    refused(replace(whole, device=CLIENTS), "evidence-malformed")


def test_signed_deals_do_not_convict_of_a_missing_signature(
    honest: tuple[SimulatedTask, CohortResult],
) -> None:
    whole = against(honest)
    other = (whole.device + 1) % CLIENTS
    changed = {"kind": evidence.DEAL_SIGNATURE, "secret": -1, "shares": ()}
    refused(replace(whole, other=other, **changed), "evidence-innocent")
    refused(replace(whole, other=whole.device, **changed), "evidence-not-bound")


def test_a_seal_that_opens_does_not_convict(honest: tuple[SimulatedTask, CohortResult]) -> None:
    shown, result = honest
    whole = against(honest)
    graph = result.state.facts.graph
    other = next(
        index
        for index in graph.neighbours(whole.device)
        if graph.sealer(whole.device, index) == whole.device
    )
    devices = {d.config.certificate.identity_key: d for d in make_devices(shown, one_hot())}
    peer = devices[result.state.facts.identity(other)]
    seal = replace(
        whole,
        kind=evidence.SEAL_INVALID,
        secret=-1,
        shares=(),
        other=other,
        other_message=peer.advert,
    )
    refused(seal, "evidence-not-transferable")
    refused(seal, "evidence-innocent", mask_secret=peer.state.mask_secret)
    refused(seal, "evidence-not-bound", mask_secret=Secret(b"m" * 32))


def test_a_second_list_of_hashes_by_a_dealer_in_league_does_not_travel() -> None:
    """The dealer signs other hashes than it delivered, for the holder's answer to miss: only who
    delivered the first list can tell, so nobody else takes this kind."""
    shown = task()
    adversary = Adversary(shown)
    adversary.until_masked()
    adversary.confirm(lambda _: adversary.everyone)
    holder, dealer = 0, 1
    (answer,) = adversary.say(
        holder,
        messages.Confirmations(adversary.ctx, tuple(adversary.confirmations.values())),
    )
    key = signing_key(adversary.devices[dealer].config.identity)
    delivered = adversary.deals[dealer]
    others = []
    for signed in delivered.values():
        deal, _ = messages.peek(signed, messages.Deal)
        others.append(
            messages.sign(replace(deal, share_hashes=(bytes(32), bytes(32))), adversary.ctx, key)
        )
    second = messages.sign(messages.Deals(adversary.ctx, tuple(others), ()), adversary.ctx, key)
    forged = Evidence(
        kind=evidence.UNMASK_SHARE,
        manifest=encode_manifest(shown.manifest),
        cohort=adversary.cohort,
        attempt=0,
        models=adversary.models,
        entries=adversary.entries,
        device=holder,
        advert=adversary.adverts[holder],
        message=answer,
        other=dealer,
        other_message=second,
        secret=SHARE_OF_SELF_SEED,
    )
    refused(forged, "evidence-not-transferable")
    assert verify_evidence(encode_evidence(forged), delivered=True).identity == (
        adversary.identity(holder)
    )  # the weakened build: one that takes the aggregator's word


@pytest.mark.parametrize("cut", [0, 1, 2, 50, 500])
def test_bytes_that_are_no_evidence_get_a_typed_error(
    honest: tuple[SimulatedTask, CohortResult], cut: int
) -> None:
    refused(encode_evidence(against(honest))[:cut], "evidence-malformed")
    refused(b"\x02" + encode_evidence(against(honest))[1:], "evidence-malformed")


def test_any_damage_gets_a_typed_error(honest: tuple[SimulatedTask, CohortResult]) -> None:
    whole = encode_evidence(against(honest))
    generator = np.random.default_rng(4)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] ^= int(generator.integers(1, 256))
        with pytest.raises(RemoteProtocolError) as caught:
            verify_evidence(bytes(damaged))
        assert caught.value.reason.startswith("evidence-")


def test_evidence_reads_back_as_it_was_written(honest: tuple[SimulatedTask, CohortResult]) -> None:
    assert decode_evidence(encode_evidence(against(honest))) == against(honest)


def test_an_excluded_dealer_is_not_in_s() -> None:
    """A device that is banned while its cohort checks is left out, and the others go on."""
    shown = task()
    pool = LocalDevices(make_devices(shown, one_hot()))
    hooks = Hooks()
    running = Aggregator(shown, pool.advertise(), cohort=bytes(32), attempt=0, hooks=hooks)

    def phase(name: str) -> None:
        if name == "checking":
            running.state, _ = server.step(
                shown.server, running.state, server.Exclude(running.index_of[LIAR])
            )

    hooks.phase = phase
    result = drive(running, pool)
    assert isinstance(result.state, server.Released)
    assert LIAR not in result.survivors
    assert len(result.survivors) == CLIENTS - 1
