"""What a device demands of the aggregator, one function per demand.

The device polices the aggregator: an authentic message that breaks one of these rules ends the
exchange, because an honest aggregator would not have sent it. ``attacks`` in the test suite
removes them one by one and shows what each one stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from secagg import keys
from secagg.adverts import check_advert
from secagg.client.events import ClientConfig
from secagg.client.states import Advertised, Exchange
from secagg.context import (
    advert_digest,
    masking_set_digest,
    survivor_set_digest,
)
from secagg.errors import RemoteProtocolError
from secagg.graph import parameters
from secagg.graph.harary import Graph
from secagg.limits import CLOCK_SKEW_S, COHORT_MAX, DIGEST_BYTES, IDENTITY_KEY_BYTES
from secagg.messages import (
    Abort,
    AdmittedModel,
    Advert,
    Certificate,
    Confirmation,
    ContextMessage,
    Roster,
    peek,
    verify,
)


def check_addressed(config: ClientConfig, state: Advertised, roster: Roster) -> None:
    """The roster lists this device's current advert; anything else is not for this exchange."""
    own = bytes(config.certificate.identity_key)
    digest = advert_digest(state.advert)
    if not 0 <= roster.index < len(roster.entries):
        raise RemoteProtocolError(
            "roster-index",
            "The roster gives this device no place.",
            expected=f"below {len(roster.entries)}",
            found=roster.index,
        )
    entry = roster.entries[roster.index]
    if (entry.identity_key, entry.advert_digest) != (own, digest):
        raise RemoteProtocolError(
            "roster-not-mine",
            "The roster does not list the advert that this device sent.",
            expected=digest.hex(),
            found=entry.advert_digest.hex(),
        )


def check_context(exchange: Exchange, message: ContextMessage | Abort) -> None:
    """The message names the exchange that this device is in."""
    if isinstance(message, Abort):
        found, expected = message.cohort, exchange.cohort
    else:
        found, expected = message.ctx, exchange.ctx
    if found != expected:
        raise RemoteProtocolError(
            "message-context",
            "The message is for another exchange.",
            expected=expected.hex(),
            found=found.hex(),
        )


def check_task(config: ClientConfig, state: Advertised, roster: Roster, now_s: float) -> None:
    """Task and manifest are those that the device verified, and its advert is still good."""
    if (roster.task, roster.manifest_digest) != (config.manifest.task, config.manifest_digest):
        raise RemoteProtocolError(
            "roster-manifest",
            "The roster is for another task or manifest.",
            expected=(config.manifest.task, config.manifest_digest.hex()),
            found=(roster.task, roster.manifest_digest.hex()),
        )
    if len(roster.cohort) != DIGEST_BYTES or not 0 <= roster.attempt < 1 << 32:
        raise RemoteProtocolError(
            "roster-malformed", "The roster's cohort or attempt is out of range."
        )
    if state.expires_at + CLOCK_SKEW_S < now_s:
        raise RemoteProtocolError(
            "advert-expired",
            "The roster came after this device's advert had expired.",
            expected=state.expires_at,
            found=f"{now_s:.0f}",
            remedy="Report in again.",
        )


def check_models(config: ClientConfig, state: Advertised, roster: Roster) -> int:
    """The admitted models are few enough and each has devices behind it; returns how many
    versions this device's own is behind the newest.

    Were devices of one sum given different models, their sum could be taken apart by what each
    model makes of its data (Pasquini et al., CCS 2022). So a synchronous cohort admits exactly
    one, and an asynchronous one admits none that too few devices trained on.
    That a model is in the ledger is for the driver to check before it provides a vector.
    """
    rules = config.manifest.cohort
    versions = [model.version for model in roster.models]
    digests = {model.digest for model in roster.models}
    rising = all(later > earlier for earlier, later in pairwise(versions))
    if (
        not versions
        or versions[0] < 0
        or not rising
        or len(digests) != len(versions)
        or any(len(model.digest) != DIGEST_BYTES for model in roster.models)
        or versions[-1] - versions[0] > rules.versions_back
    ):
        raise RemoteProtocolError(
            "roster-models",
            "The cohort admits models that its manifest does not.",
            expected=f"distinct models of {rules.versions_back + 1} consecutive versions at most",
            found=[(model.version, model.digest.hex()) for model in roster.models][:8],
        )
    behind = Counter(entry.model for entry in roster.entries)
    floor = _behind_each_model(config)
    if set(behind) != set(range(len(versions))) or min(behind.values()) < floor:
        raise RemoteProtocolError(
            "roster-models",
            "Too few devices trained on one of the admitted models.",
            expected=f"at least {floor} for each of {len(versions)}",
            found=sorted(behind.items())[:8],
        )
    advert, _ = peek(state.advert, Advert)
    own = AdmittedModel(advert.model_version, advert.model_digest)
    if roster.models[roster.entries[roster.index].model] != own:
        raise RemoteProtocolError(
            "roster-models",
            "The roster admits this device with another model than the one it trained on.",
            expected=(own.version, own.digest.hex()),
            found=[(model.version, model.digest.hex()) for model in roster.models][:8],
        )
    return versions[-1] - own.version


def _behind_each_model(config: ClientConfig) -> int:
    return max(config.manifest.cohort.behind_each_model, config.survivors_min)


def check_size(config: ClientConfig, roster: Roster) -> None:
    """The cohort's size is within the manifest's bounds and this device's own."""
    rules = config.manifest.cohort
    floor = max(rules.size_min, rules.survivors_min, config.survivors_min)
    if not floor <= len(roster.entries) <= rules.size_max:
        raise RemoteProtocolError(
            "cohort-size",
            "The cohort's size is out of bounds.",
            expected=f"{floor} to {rules.size_max}",
            found=len(roster.entries),
        )


def check_order(roster: Roster) -> None:
    """Entries are strictly ordered by identity key, so nobody is in the roster twice."""
    identities = [entry.identity_key for entry in roster.entries]
    if any(len(key) != IDENTITY_KEY_BYTES for key in identities) or any(
        len(entry.advert_digest) != DIGEST_BYTES for entry in roster.entries
    ):
        raise RemoteProtocolError("roster-malformed", "An entry of the roster has a wrong size.")
    if any(later <= earlier for earlier, later in pairwise(identities)):
        raise RemoteProtocolError(
            "roster-order", "The roster is not strictly ordered by identity key."
        )


def check_certificates(
    config: ClientConfig, roster: Roster, now_s: float
) -> tuple[Certificate, ...]:
    """The certificate of every entry: it has not expired, the partner that signed it is in the
    manifest *and* trusted by this device, and has not revoked it.

    Every entry, not only neighbours: all of the roster may confirm on a sparse graph, so one that
    nobody certified would be a voice of the aggregator.
    """
    partners = config.partner_keys & frozenset(config.manifest.partner_keys)
    listed = roster.partners
    if any(later <= earlier for earlier, later in pairwise(listed)):
        raise RemoteProtocolError("roster-malformed", "The roster's partners are out of order.")
    certificates = []
    for index, entry in enumerate(roster.entries):
        if not 0 <= entry.partner < len(listed):
            raise RemoteProtocolError(
                "roster-malformed",
                f"Entry {index} of the roster names no partner of it.",
                culprit=entry.identity_key,
                expected=f"below {len(listed)}",
                found=entry.partner,
            )
        certificate = Certificate(
            entry.identity_key, listed[entry.partner], entry.not_after, entry.certificate_signature
        )
        keys.verify_certificate(certificate, partners, now_s)
        if (certificate.partner_key, entry.identity_key) in config.revoked:
            raise RemoteProtocolError(
                "certificate-revoked",
                f"The partner of entry {index} of the roster has revoked its certificate.",
                culprit=entry.identity_key,
            )
        certificates.append(certificate)
    return tuple(certificates)


def check_neighbours(
    config: ClientConfig,
    roster: Roster,
    graph: Graph,
    certificates: Sequence[Certificate],
    now_s: float,
) -> dict[int, Advert]:
    """The neighbours' verified adverts, by roster index.

    A neighbour counts if its advert is the one in the roster, signed by it under the certificate
    that the roster gives, for this task and its admitted model, and not expired.
    """
    expected = graph.neighbours(roster.index)
    found = tuple(index for index, _ in roster.neighbour_adverts)
    if found != expected:
        raise RemoteProtocolError(
            "roster-neighbours",
            "The roster does not carry the adverts of exactly this device's neighbours.",
            expected=expected[:8],
            found=found[:8],
        )
    adverts: dict[int, Advert] = {}
    for index, signed in roster.neighbour_adverts:
        entry = roster.entries[index]
        if advert_digest(signed) != entry.advert_digest:
            raise RemoteProtocolError(
                "roster-advert",
                f"The advert of neighbour {index} is not the one in the roster.",
                expected=entry.advert_digest.hex(),
                found=advert_digest(signed).hex(),
            )
        partner = (certificates[index].partner_key,)  # one that counts, see check_certificates
        advert = check_advert(signed, config.manifest, config.manifest_digest, partner, now_s)
        if advert.certificate != certificates[index]:
            raise RemoteProtocolError(
                "roster-advert",
                f"The advert of neighbour {index} is another device's, or of another certificate.",
                culprit=advert.certificate.identity_key,
                expected=entry.identity_key.hex(),
                found=advert.certificate.identity_key.hex(),
            )
        admitted = roster.models[entry.model]
        if (advert.model_version, advert.model_digest) != (admitted.version, admitted.digest):
            raise RemoteProtocolError(
                "roster-models",
                f"Neighbour {index} trained on another model than the roster says.",
                culprit=entry.identity_key,
                expected=(admitted.version, admitted.digest.hex()),
                found=(advert.model_version, advert.model_digest.hex()),
            )
        adverts[index] = advert
    return adverts


def _check_indices(name: str, members: Sequence[int], size: int) -> None:
    strictly = all(b > a for a, b in pairwise(members))
    if not members or not strictly or members[0] < 0 or members[-1] >= size:
        raise RemoteProtocolError(
            f"{name}-malformed",
            f"The {name.replace('-', ' ')} is not a strictly ordered list of roster indices.",
        )


def check_masking_set(
    config: ClientConfig, exchange: Exchange, members: Sequence[int], usable: Sequence[int]
) -> None:
    """S holds this device, enough devices in all and behind each model, at least t neighbours,
    and no neighbour whose deal this device does not have (``usable``: those that it has)."""
    _check_indices("masking-set", members, len(exchange.identity_keys))
    _check_alive("masking-set", exchange, members)
    _check_enough("masking-set", config, exchange, members)
    in_set = frozenset(members).intersection(exchange.neighbours)
    if unknown := in_set.difference(usable):
        raise RemoteProtocolError(
            "masking-set-dealer",
            "The masking set holds neighbours whose deals this device could not use.",
            found=sorted(unknown)[:8],
        )
    if len(in_set) < exchange.threshold:
        raise RemoteProtocolError(
            "masking-set-neighbours",
            "Too few of this device's neighbours are in the masking set.",
            expected=f"at least {exchange.threshold}",
            found=len(in_set),
        )


def check_survivor_set(
    config: ClientConfig, exchange: Exchange, masking_set: Sequence[int], members: Sequence[int]
) -> None:
    """U lies within S, holds this device, and is large enough for manifest, device and noise, in
    all and behind each model."""
    _check_indices("survivor-set", members, len(exchange.identity_keys))
    if outside := frozenset(members).difference(masking_set):
        raise RemoteProtocolError(
            "survivor-set-outside",
            "The survivor set holds devices that did not mask.",
            found=sorted(outside)[:8],
        )
    _check_alive("survivor-set", exchange, members)
    _check_enough("survivor-set", config, exchange, members)
    drops = config.manifest.removable_drops
    if drops and len(masking_set) - len(members) > drops[-1]:
        raise RemoteProtocolError(
            "survivor-set-noise",
            "More devices are missing than the noise of the others makes up for.",
            expected=f"at most {drops[-1]}",
            found=len(masking_set) - len(members),
        )


def _check_alive(name: str, exchange: Exchange, members: Sequence[int]) -> None:
    if exchange.index not in members:
        raise RemoteProtocolError(
            f"{name}-without-me", f"The {name.replace('-', ' ')} does not hold this device."
        )


def _check_enough(
    name: str, config: ClientConfig, exchange: Exchange, members: Sequence[int]
) -> None:
    floor = max(config.manifest.cohort.survivors_min, config.survivors_min)
    if len(members) < floor:
        raise RemoteProtocolError(
            f"{name}-too-small",
            f"The {name.replace('-', ' ')} is too small.",
            expected=f"at least {floor}",
            found=len(members),
        )
    _check_behind_each_model(name, config, exchange, members)


def _check_behind_each_model(
    name: str, config: ClientConfig, exchange: Exchange, members: Sequence[int]
) -> None:
    """What the roster showed is counted again: devices that are called lost are in no sum.

    A model that no member trained on is not a model of the sum any more.
    """
    if len(exchange.models) < 2:
        return
    places = exchange.model_places or range(len(exchange.identity_keys))  # not kept: a model each
    behind = Counter(places[index] for index in members)
    floor = _behind_each_model(config)
    if min(behind.values()) < floor:
        raise RemoteProtocolError(
            f"{name}-models",
            f"Too few devices of the {name.replace('-', ' ')} trained on one of the models.",
            expected=f"at least {floor} for each of {len(behind)}",
            found=sorted(behind.items())[:8],
        )


# A process with many devices of one cohort sees the same confirmations many times; a failure is
# not remembered, so whatever raises is looked at again.


@lru_cache(maxsize=COHORT_MAX)
def _claimed(signed: bytes) -> tuple[Confirmation, bytes]:
    message, envelope = peek(signed, Confirmation)
    return message, envelope.signer


@lru_cache(maxsize=COHORT_MAX)
def _verified(signed: bytes, ctx: bytes) -> None:
    verify(signed, ctx, Confirmation)


def check_confirmations(
    config: ClientConfig,
    exchange: Exchange,
    masking_set: Sequence[int],
    survivors: Sequence[int],
    signed_confirmations: Sequence[bytes],
) -> None:
    """At least t neighbours, and on a sparse graph more than (n + c)/2 of the roster, confirmed
    with their signature the same S and U as this device.

    Neighbours alone would not do on a sparse graph: its arcs could be shown different sets. Two
    sets that so many of the roster confirmed would have an honest device in common.

    Signatures are verified until both counts are reached: all neighbours', then of others.
    """
    masking = masking_set_digest(exchange.ctx, masking_set)
    own = (masking, survivor_set_digest(exchange.ctx, masking, survivors))
    alive, neighbours = frozenset(survivors), frozenset(exchange.neighbours)
    near: set[int] = set()
    far: dict[int, bytes] = {}
    for signed in signed_confirmations:
        message, signer = _claimed(signed)
        index = message.index
        if index not in alive or signer != exchange.identity_keys[index]:
            raise RemoteProtocolError(
                "confirmation-signer",
                "A confirmation is not from a survivor.",
                found=signer.hex(),
            )
        if index in neighbours:
            _verified(signed, exchange.ctx)
        if (message.masking_set_digest, message.survivor_set_digest) != own:
            raise RemoteProtocolError(
                "confirmations-differ",
                f"Device {index} was shown another set of survivors.",
                expected=own[1].hex(),
                found=message.survivor_set_digest.hex(),
            )
        if index in neighbours:
            near.add(index)
        else:
            far[index] = signed
    if len(near) < exchange.threshold:
        raise RemoteProtocolError(
            "confirmations-too-few",
            "Too few neighbours confirmed the survivors.",
            expected=f"at least {exchange.threshold}",
            found=len(near),
        )
    if exchange.graph.is_complete:
        return
    needed = parameters.confirmations_needed(
        len(exchange.identity_keys), config.manifest.cohort.corrupt_max
    )
    if len(near) + len(far) < needed:
        raise RemoteProtocolError(
            "confirmations-too-few",
            "Too little of the roster confirmed the survivors.",
            expected=f"at least {needed}",
            found=len(near) + len(far),
        )
    for signed in list(far.values())[: max(0, needed - len(near))]:
        _verified(signed, exchange.ctx)
