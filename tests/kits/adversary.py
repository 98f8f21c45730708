"""The aggregator as an attacker: it holds the task key and tells each device what it likes.

The devices run the real machines. Whatever a device answers is kept, so an attack can combine it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property

import msgspec
import numpy as np

from secagg import client, masks, messages, ring, sealing, sharing
from secagg.context import (
    KIND_PAIR_SEED,
    KIND_SHARES,
    MASK_KEY,
    SHARE_OF_MASK_SECRET,
    SHARE_OF_SELF_SEED,
    advert_digest,
    context,
    masking_set_digest,
    pair_seed,
    pair_sign,
    roster_digest,
    seal_info,
    share_hash,
    survivor_set_digest,
)
from secagg.graph.harary import Graph
from secagg.keys import signing_key
from secagg.messages import Message
from secagg.sealing import hpke_seal
from secagg.secret import Secret
from secagg.simulation import EPOCH_S, Device, SimulatedTask, make_devices

Chooser = Callable[[int], Sequence[int]]


def vectors(task: SimulatedTask, clients: int) -> list[np.ndarray]:
    """Inputs that are worth stealing: all different, none zero."""
    length = task.manifest.data_length
    return [np.arange(length, dtype=np.int64) * 7 + 1000 * (n + 1) for n in range(clients)]


class Adversary:
    """Drives ``devices`` (by roster index) step by step.

    Attributes:
        deals: dealer -> recipient -> signed deal as sent.
        masked: device -> masked lanes.
        confirmations: device -> signed confirmation.
        shares: (owner, kind) -> holder -> revealed share.
    """

    def __init__(
        self,
        task: SimulatedTask,
        *,
        devices: Sequence[Device] | None = None,
        cohort: bytes = b"c" * 32,
    ) -> None:
        self.task = task
        self.cohort = cohort
        made = devices or make_devices(task, vectors(task, len(task.devices)))
        self.devices = sorted(made, key=lambda device: device.config.certificate.identity_key)
        self.adverts = [device.advert for device in self.devices]
        self.deals: dict[int, dict[int, bytes]] = {}
        self.masked: dict[int, np.ndarray] = {}
        self.confirmations: dict[int, bytes] = {}
        self.shares: dict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)
        self.models = (messages.AdmittedModel(1, task.model_digest),)

    @property
    def size(self) -> int:
        return len(self.devices)

    @property
    def everyone(self) -> tuple[int, ...]:
        return tuple(range(self.size))

    def identity(self, index: int) -> bytes:
        return self.devices[index].config.certificate.identity_key

    @property
    def entries(self) -> tuple[messages.RosterEntry, ...]:
        return tuple(
            messages.RosterEntry(
                self.identity(index),
                advert_digest(advert),
                self.model_of(index),
                self.partners.index(device.config.certificate.partner_key),
                device.config.certificate.not_after,
                device.config.certificate.signature,
            )
            for index, (advert, device) in enumerate(zip(self.adverts, self.devices, strict=True))
        )

    @cached_property
    def partners(self) -> tuple[bytes, ...]:
        return tuple(sorted({d.config.certificate.partner_key for d in self.devices}))

    def model_of(self, index: int) -> int:
        """Place of the device's model among those admitted; the first if it is not."""
        advert, _ = messages.peek(self.adverts[index], messages.Advert)
        digests = [model.digest for model in self.models]
        return digests.index(advert.model_digest) if advert.model_digest in digests else 0

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.size, self.task.manifest.cohort.degree, roster_digest(self.entries))

    @property
    def ctx(self) -> bytes:
        return context(
            task=self.task.manifest.task,
            cohort=self.cohort,
            attempt=0,
            manifest_digest=self.task.server.manifest_digest,
            models=self.models,
            roster=roster_digest(self.entries),
        )

    def roster(self, index: int) -> messages.Roster:
        return messages.Roster(
            task=self.task.manifest.task,
            cohort=self.cohort,
            attempt=0,
            manifest_digest=self.task.server.manifest_digest,
            models=self.models,
            entries=self.entries,
            index=index,
            neighbour_adverts=tuple(
                (other, self.adverts[other]) for other in self.graph.neighbours(index)
            ),
            partners=self.partners,
        )

    def say(self, index: int, message: Message) -> list[bytes]:
        """Sign with the task key, deliver, and return what the device sent."""
        ctx = b"" if isinstance(message, messages.Roster) else self.ctx
        signed = messages.sign(message, ctx, signing_key(self.task.server.task_key))
        return self.deliver(index, signed)

    def deliver(self, index: int, signed: bytes) -> list[bytes]:
        outputs = self.devices[index].receive(signed, EPOCH_S + 1.0)
        for output in outputs:
            self._keep(index, output.message, output.payload)
        return [output.message for output in outputs]

    def _keep(self, index: int, signed: bytes, payload: bytes | None) -> None:
        message, _ = messages.peek(signed, *messages.KINDS)
        match message:
            case messages.Deals(deals=deals):
                neighbours = self.graph.neighbours(index)
                self.deals[index] = dict(zip(neighbours, deals, strict=True))
            case messages.MaskedInput() if payload is not None:
                length = ring.payload_length(
                    self.task.manifest.data_length, self.task.manifest.encoding.slice_length
                )
                bits = self.task.manifest.encoding.ring_bits
                self.masked[index] = ring.unpack(payload, length, bits)
            case messages.Confirmation():
                self.confirmations[index] = signed
            case messages.Unmask(shares=shares):
                for share in shares:
                    self.shares[share.owner, share.kind][index] = share.share

    # -- the honest steps ----------------------------------------------------------------------

    def share(self, only: Sequence[int] | None = None) -> None:
        for index in self.everyone if only is None else only:
            self.say(index, self.roster(index))

    def inbox(self, index: int) -> messages.Inbox:
        dealers = [d for d in self.graph.neighbours(index) if index in self.deals.get(d, {})]
        return messages.Inbox(self.ctx, tuple(self.deals[d][index] for d in dealers))

    def check(self, only: Sequence[int] | None = None) -> None:
        for index in self.everyone if only is None else only:
            self.say(index, self.inbox(index))

    def mask(self, members: Chooser | None = None) -> None:
        for index in self.everyone:
            chosen = self.everyone if members is None else members(index)
            self.say(index, messages.MaskingSet(self.ctx, tuple(chosen)))

    def confirm(self, survivors: Chooser, only: Sequence[int] | None = None) -> None:
        for index in self.everyone if only is None else only:
            self.say(index, messages.SurvivorSet(self.ctx, tuple(survivors(index))))

    def unmask(self, confirmers: Chooser, only: Sequence[int] | None = None) -> None:
        for index in self.everyone if only is None else only:
            chosen = [self.confirmations[c] for c in confirmers(index) if c in self.confirmations]
            self.say(index, messages.Confirmations(self.ctx, tuple(chosen)))

    def until_masked(self) -> None:
        self.share()
        self.check()
        self.mask()

    # -- what it learns ------------------------------------------------------------------------

    def threshold(self) -> int:
        state = self.devices[0].state
        assert isinstance(state, (client.Shared, client.Checked, client.Unmasked))
        return state.session.threshold

    def secret(self, owner: int, kind: int, threshold: int) -> Secret | None:
        """A device's secret, if enough shares of it were revealed."""
        held = dict(sorted(self.shares.get((owner, kind), {}).items())[:threshold])
        if len(held) < threshold:
            return None
        return sharing.join(held, sharing.lagrange_at_zero(list(held)))

    def self_seed(self, owner: int, threshold: int) -> Secret | None:
        return self.secret(owner, SHARE_OF_SELF_SEED, threshold)

    def mask_secret(self, owner: int, threshold: int) -> Secret | None:
        return self.secret(owner, SHARE_OF_MASK_SECRET, threshold)

    def pair_seed_from(self, owner: int, mask_secret: Secret, other: int) -> Secret:
        """The pair seed of an edge from one end's mask secret, as an honest opening would."""
        own, peer = self.identity(owner), self.identity(other)
        if self.graph.sealer(owner, other) == owner:
            return pair_seed(mask_secret, self.ctx, own, peer)
        deal, _ = messages.peek(self.deals[other][owner], messages.Deal)
        info = seal_info(self.ctx, peer, own, KIND_PAIR_SEED)
        private = sealing.kem_private_key(mask_secret, MASK_KEY)
        return Secret(sealing.hpke_open(private, info, deal.sealed_pair_seed))

    def strip(
        self,
        lanes: np.ndarray,
        seeds: Sequence[tuple[Secret, int]],
        members: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Take masks (seed, sign with which it was added) off and decode the data."""
        salt = masking_set_digest(self.ctx, tuple(self.everyone if members is None else members))
        encoding = self.task.manifest.encoding
        opened = lanes.copy()
        terms = [masks.MaskTerm(masks.mask_key(s, salt), sign).negated() for s, sign in seeds]
        masks.apply_masks(opened, terms, encoding.ring_bits)
        _, data = ring.split_checks(opened, encoding.slice_length)
        return ring.centred(data, encoding.ring_bits)

    def read_vector(
        self, victim: int, self_seed: Secret, pair_seeds: dict[int, Secret]
    ) -> np.ndarray:
        """One device's vector from its self seed and all its pair seeds."""
        seeds = [(self_seed, 1)]
        seeds += [(seed, pair_sign(victim, other)) for other, seed in pair_seeds.items()]
        return self.strip(self.masked[victim], seeds)

    def open_sum(
        self, survivors: Sequence[int], dropped: Sequence[int], threshold: int
    ) -> np.ndarray | None:
        """Data of the survivors' sum, from the shares it has; None where they are too few."""
        seeds: list[tuple[Secret, int]] = []
        for owner in survivors:
            self_seed = self.self_seed(owner, threshold)
            if self_seed is None:
                return None
            seeds.append((self_seed, 1))
        for owner in dropped:
            mask_secret = self.mask_secret(owner, threshold)
            if mask_secret is None:
                return None
            seeds += [
                (self.pair_seed_from(owner, mask_secret, other), pair_sign(other, owner))
                for other in survivors
                if self.graph.adjacent(owner, other)
            ]
        total = sum(self.masked[index].astype(np.uint64) for index in survivors)
        return self.strip(total.astype("<u4"), seeds)

    def confirmation_digests(self, survivors: Sequence[int]) -> tuple[bytes, bytes]:
        masking = masking_set_digest(self.ctx, self.everyone)
        return masking, survivor_set_digest(self.ctx, masking, tuple(survivors))


def failed_reason(device: Device) -> str | None:
    return device.state.reason if isinstance(device.state, client.Failed) else None


def plain_vector(task: SimulatedTask, device: Device) -> np.ndarray:
    """What the device put in."""
    return vectors(task, len(task.devices))[device.number]


def unverified(signed: bytes, ctx: bytes, *kinds: type, signer: bytes | None = None):
    """A build that looks at no signature of a neighbour."""
    message, envelope = messages.peek(signed, *kinds)
    return message, envelope.signer if signer is None else signer


def forge_deal(adversary: Adversary, dealer: int, victim: int, pair_seed: Secret) -> bytes:
    """A deal in the dealer's name with a pair seed of the aggregator's choice."""
    genuine, _ = messages.peek(adversary.deals[dealer][victim], messages.Deal)
    advert, _ = messages.peek(adversary.adverts[victim], messages.Advert)
    sender, recipient = adversary.identity(dealer), adversary.identity(victim)
    ctx = adversary.ctx
    share = b"\x01" * 33
    sealed_pair_seed = b""
    if adversary.graph.sealer(dealer, victim) == dealer:
        info = seal_info(ctx, sender, recipient, KIND_PAIR_SEED)
        sealed_pair_seed = hpke_seal(advert.mask_key, info, pair_seed.reveal())
    forged = msgspec.structs.replace(
        genuine,
        sealed_pair_seed=sealed_pair_seed,
        sealed_shares=hpke_seal(
            advert.channel_key, seal_info(ctx, sender, recipient, KIND_SHARES), share + share
        ),
        share_hashes=tuple(
            share_hash(kind, ctx, sender, recipient, share)
            for kind in (SHARE_OF_SELF_SEED, SHARE_OF_MASK_SECRET)
        ),
    )
    return messages.sign(forged, ctx, signing_key(adversary.task.server.task_key))
