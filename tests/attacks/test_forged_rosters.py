"""Attacks on who a device's neighbours are: invented devices and replaced keys."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from secagg import adverts, client, keys, messages, sealing
from secagg.client import deals
from secagg.context import (
    CHANNEL_KEY,
    KIND_PAIR_SEED,
    KIND_SHARES,
    MASK_KEY,
    SHARE_OF_SELF_SEED,
    seal_info,
)
from secagg.graph import harary
from secagg.keys import signing_key
from secagg.sealing import hpke_open
from secagg.secret import Secret
from secagg.simulation import EPOCH_S, Device, SimulatedTask, make_devices, make_task, seeded_tools
from tests.kits.adversary import Adversary, failed_reason, forge_deal, plain_vector, unverified

CLIENTS = 6  # k = 5, no corrupt device: t = 3


def task(**settings: int) -> SimulatedTask:
    return make_task(CLIENTS, 4, survivors_min=3, **settings)


# -- invented devices ----------------------------------------------------------------------------


def surrounded(real: SimulatedTask, *, listed: bool, trusted: bool = False) -> Adversary:
    """One real device among devices that the aggregator made up, with a partner of its own.

    ``listed``: the aggregator even lists its partner in the manifest. ``trusted``: the real device
    trusts that partner, in other tasks.
    """
    invented = task(seed=666)
    partner = invented.manifest.partner_keys[0]
    manifest = real.manifest
    if listed:
        manifest = msgspec.structs.replace(manifest, partner_keys=(*manifest.partner_keys, partner))
    known = real.devices[0].partner_keys | ({partner} if trusted else set())
    configs = [replace(real.devices[0], manifest=manifest, partner_keys=known)]
    configs += [
        replace(
            config,
            manifest=manifest,
            manifest_digest=real.server.manifest_digest,
            partner_keys=frozenset({partner, *(real.manifest.partner_keys if listed else ())}),
        )
        for config in invented.devices[1:]
    ]
    shown = SimulatedTask(
        replace(real.server, manifest=manifest), tuple(configs), real.model_digest
    )
    devices = make_devices(shown, [np.full(4, 1000 * (n + 1)) for n in range(CLIENTS)])
    return Adversary(shown, devices=devices)


def read_surrounded(adversary: Adversary) -> np.ndarray | None:
    """The aggregator is every neighbour, so it knows every seed of the one real device."""
    victim = next(i for i, d in enumerate(adversary.devices) if d.number == 0)
    adversary.share()
    if victim not in adversary.deals:
        return None
    adversary.check()
    pair_seeds = {
        index: device.state.pair_seeds[victim]
        for index, device in enumerate(adversary.devices)
        if isinstance(device.state, client.Checked) and index != victim
    }
    adversary.mask()
    adversary.confirm(lambda index: adversary.everyone)
    adversary.unmask(lambda index: adversary.everyone)
    self_seed = adversary.self_seed(victim, 3)
    assert self_seed is not None
    return adversary.read_vector(victim, self_seed, pair_seeds)


@pytest.mark.parametrize("listed", [False, True])
def test_without_certificates_invented_neighbours_read_a_vector(
    monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    monkeypatch.setattr(keys, "verify_certificate", lambda *_: None)
    stolen = read_surrounded(surrounded(task(), listed=listed))
    assert stolen is not None
    assert stolen.tolist() == [1000] * 4


@pytest.mark.parametrize(("listed", "trusted"), [(False, False), (True, False), (False, True)])
def test_devices_of_an_unknown_partner_are_refused(listed: bool, trusted: bool) -> None:
    """A partner counts only if the manifest *and* the device itself know it."""
    adversary = surrounded(task(), listed=listed, trusted=trusted)
    assert read_surrounded(adversary) is None
    victim = next(d for d in adversary.devices if d.number == 0)
    assert failed_reason(victim) == "partner-unknown"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"certificate_signature": bytes(64)}, "certificate-invalid"),
        ({"certificate_signature": b""}, "certificate-invalid"),
        ({"not_after": EPOCH_S - 301}, "certificate-expired"),
        ({"partner": 1}, "partner-unknown"),
        ({"partner": 2}, "roster-malformed"),
    ],
    ids=["self-made", "none", "expired", "of another partner", "of no partner"],
)
def test_on_a_sparse_graph_the_far_side_of_the_roster_is_certified_too(
    changes: dict[str, object], reason: str
) -> None:
    """All of the roster may confirm a survivor set: an entry that nobody certified would be a voice
    of the aggregator's, wherever it stands."""
    adversary = Adversary(make_task(130, 4, survivors_min=127, degree=8, threshold=5))
    adversary.partners = (*adversary.partners, b"\xff" * 32)
    near = {0, *adversary.graph.neighbours(0)}
    far = next(index for index in adversary.everyone if index not in near)
    shown = adversary.roster(0)
    entries = list(shown.entries)
    entries[far] = msgspec.structs.replace(entries[far], **changes)
    adversary.say(0, msgspec.structs.replace(shown, entries=tuple(entries)))
    assert failed_reason(adversary.devices[0]) == reason
    adversary.say(1, adversary.roster(1))
    assert failed_reason(adversary.devices[1]) is None


# -- neighbours' keys replaced -------------------------------------------------------------------


def replace_all_keys(adversary: Adversary, victim: int) -> np.ndarray | None:
    """The victim is shown its real neighbours with keys of the aggregator; the aggregator deals,
    confirms and receives shares in their names."""
    mask_secret, channel_secret = Secret(b"m" * 32), Secret(b"h" * 32)
    task_key = signing_key(adversary.task.server.task_key)
    others = harary.neighbours(victim, adversary.size)
    for other in others:
        genuine, _ = messages.peek(adversary.adverts[other], messages.Advert)
        changed = msgspec.structs.replace(
            genuine,
            mask_key=sealing.kem_public_key(mask_secret, MASK_KEY),
            channel_key=sealing.kem_public_key(channel_secret, CHANNEL_KEY),
        )
        frame = messages.encode(changed)
        signature = task_key.sign(frame).signature
        signed = messages.Signed(frame, genuine.certificate.identity_key, signature)
        adversary.adverts[other] = msgspec.msgpack.encode(signed)
    adversary.say(victim, adversary.roster(victim))
    if victim not in adversary.deals:
        return None
    ctx, own = adversary.ctx, adversary.identity(victim)
    pair_seeds, self_shares = {}, {}
    for other in others:
        deal, _ = messages.peek(adversary.deals[victim][other], messages.Deal)
        peer = adversary.identity(other)
        channel = sealing.kem_private_key(channel_secret, CHANNEL_KEY)
        both = hpke_open(channel, seal_info(ctx, own, peer, KIND_SHARES), deal.sealed_shares)
        self_shares[other] = both[:33]
        pair_seeds[other] = Secret(b"f" * 32)
        if deal.sealed_pair_seed:
            mask_key = sealing.kem_private_key(mask_secret, MASK_KEY)
            info = seal_info(ctx, own, peer, KIND_PAIR_SEED)
            pair_seeds[other] = Secret(hpke_open(mask_key, info, deal.sealed_pair_seed))
        adversary.deals[other] = {
            victim: messages.sign(
                msgspec.structs.replace(deal, sender=other, recipient=victim), ctx, task_key
            )
        }
    forged = [forge_deal(adversary, other, victim, Secret(b"f" * 32)) for other in others]
    adversary.say(victim, messages.Inbox(ctx, tuple(forged)))
    adversary.say(victim, messages.MaskingSet(ctx, adversary.everyone))
    if victim not in adversary.masked:
        return None
    for other in others:
        adversary.shares[victim, SHARE_OF_SELF_SEED][other] = self_shares[other]
    self_seed = adversary.self_seed(victim, 3)
    assert self_seed is not None
    return adversary.read_vector(victim, self_seed, pair_seeds)


def test_without_neighbours_signatures_replaced_keys_read_a_vector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adverts, "verify", unverified)
    monkeypatch.setattr(deals, "verify", unverified)
    adversary = Adversary(task())
    stolen = replace_all_keys(adversary, victim=2)
    assert stolen is not None
    assert stolen.tolist() == plain_vector(adversary.task, adversary.devices[2]).tolist()


def test_a_neighbours_replaced_key_is_refused() -> None:
    adversary = Adversary(task())
    assert replace_all_keys(adversary, victim=2) is None
    assert failed_reason(adversary.devices[2]) == "signature-invalid"


def test_an_advert_that_is_not_the_rosters_is_refused() -> None:
    """A genuine second advert of the same neighbour, e.g. one whose secret is public by now."""
    adversary = Adversary(task())
    other = adversary.devices[3]
    again = Device(
        other.config,
        other.number,
        model_digest=adversary.task.model_digest,
        vector=lambda: np.zeros(5, "<u4"),
        tools=seeded_tools(99),
    )
    roster = adversary.roster(0)
    swapped = tuple((i, again.advert if i == 3 else a) for i, a in roster.neighbour_adverts)
    adversary.say(0, msgspec.structs.replace(roster, neighbour_adverts=swapped))
    assert failed_reason(adversary.devices[0]) == "roster-advert"


def test_one_advert_serves_one_roster() -> None:
    adversary = Adversary(task())
    adversary.share()
    session = adversary.devices[0].state.session
    adversary.cohort = b"d" * 32
    adversary.say(0, adversary.roster(0))
    assert adversary.devices[0].state.session is session
    assert len(adversary.devices[0].refused) == 1
