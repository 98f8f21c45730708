"""What a device demands of the aggregator, one function per demand.

The device polices the aggregator: an authentic message that breaks one of these rules ends the
exchange, because an honest aggregator would not have sent it. ``attacks`` in the test suite
removes them one by one and shows what each one stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from secagg import graph, parameters
from secagg.adverts import check_advert
from secagg.client.events import ClientConfig
from secagg.client.states import Advertised, Session
from secagg.context import (
    advert_digest,
    masking_set_digest,
    survivor_set_digest,
)
from secagg.errors import RemoteProtocolError
from secagg.limits import CLOCK_SKEW_S, DIGEST_BYTES, IDENTITY_KEY_BYTES
from secagg.messages import Abort, Advert, Confirmation, Message, Roster, verify


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


def check_context(session: Session, message: Message) -> None:
    """The message names the exchange that this device is in."""
    if isinstance(message, Abort):
        found, expected = message.cohort, session.cohort
    else:
        found, expected = getattr(message, "ctx", b""), session.ctx
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


def check_models(state: Advertised, roster: Roster) -> None:
    """Exactly one model is admitted: the one that this device trained on.

    Were devices of one sum given different models, their sum could be taken apart by what each
    model makes of its data (Pasquini et al., CCS 2022).
    """
    if roster.model_digests != (state.model_digest,):
        raise RemoteProtocolError(
            "roster-models",
            "A synchronous cohort admits exactly the model that this device trained on.",
            expected=[state.model_digest.hex()],
            found=[found.hex() for found in roster.model_digests],
        )


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


def check_neighbours(config: ClientConfig, roster: Roster, now_s: float) -> dict[int, Advert]:
    """The neighbours' verified adverts, by roster index.

    A neighbour counts if its partner's key is in the manifest *and* trusted by this device, its
    advert is the one in the roster, signed by it, for this task and model, and not expired.
    """
    expected = tuple(graph.neighbours(roster.index, len(roster.entries)))
    found = tuple(index for index, _ in roster.neighbour_adverts)
    if found != expected:
        raise RemoteProtocolError(
            "roster-neighbours",
            "The roster does not carry the adverts of exactly this device's neighbours.",
            expected=expected[:8],
            found=found[:8],
        )
    partners = config.partner_keys & frozenset(config.manifest.partner_keys)
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
        advert = check_advert(signed, config.manifest, config.manifest_digest, partners, now_s)
        if advert.certificate.identity_key != entry.identity_key:
            raise RemoteProtocolError(
                "roster-advert",
                f"The advert of neighbour {index} is another device's.",
                culprit=advert.certificate.identity_key,
                expected=entry.identity_key.hex(),
                found=advert.certificate.identity_key.hex(),
            )
        if advert.model_digest not in roster.model_digests:
            raise RemoteProtocolError(
                "roster-models",
                f"Neighbour {index} trained on a model that is not admitted.",
                culprit=entry.identity_key,
                expected=[admitted.hex() for admitted in roster.model_digests],
                found=advert.model_digest.hex(),
            )
        adverts[index] = advert
    return adverts


def share_threshold(config: ClientConfig, neighbours: int) -> int:
    """t for this device's number of neighbours; computed here, never taken from the server."""
    return parameters.threshold(neighbours, config.manifest.cohort.corrupt_max)


def _check_indices(name: str, members: Sequence[int], size: int) -> None:
    strictly = all(b > a for a, b in pairwise(members))
    if not members or not strictly or members[0] < 0 or members[-1] >= size:
        raise RemoteProtocolError(
            f"{name}-malformed",
            f"The {name.replace('-', ' ')} is not a strictly ordered list of roster indices.",
        )


def check_masking_set(
    config: ClientConfig, session: Session, members: Sequence[int], usable: Sequence[int]
) -> None:
    """S holds this device, enough devices, at least t neighbours, and no neighbour whose deal
    this device does not have (``usable``: those that it has)."""
    _check_indices("masking-set", members, len(session.identity_keys))
    _check_alive("masking-set", session, members)
    _check_enough("masking-set", config, members)
    in_set = frozenset(members).intersection(session.neighbours)
    if unknown := in_set.difference(usable):
        raise RemoteProtocolError(
            "masking-set-dealer",
            "The masking set holds neighbours whose deals this device could not use.",
            found=sorted(unknown)[:8],
        )
    if len(in_set) < session.threshold:
        raise RemoteProtocolError(
            "masking-set-neighbours",
            "Too few of this device's neighbours are in the masking set.",
            expected=f"at least {session.threshold}",
            found=len(in_set),
        )


def check_survivor_set(
    config: ClientConfig, session: Session, masking_set: Sequence[int], members: Sequence[int]
) -> None:
    """U lies within S, holds this device, and is large enough for manifest and device."""
    _check_indices("survivor-set", members, len(session.identity_keys))
    if outside := frozenset(members).difference(masking_set):
        raise RemoteProtocolError(
            "survivor-set-outside",
            "The survivor set holds devices that did not mask.",
            found=sorted(outside)[:8],
        )
    _check_alive("survivor-set", session, members)
    _check_enough("survivor-set", config, members)


def _check_alive(name: str, session: Session, members: Sequence[int]) -> None:
    if session.index not in members:
        raise RemoteProtocolError(
            f"{name}-without-me", f"The {name.replace('-', ' ')} does not hold this device."
        )


def _check_enough(name: str, config: ClientConfig, members: Sequence[int]) -> None:
    floor = max(config.manifest.cohort.survivors_min, config.survivors_min)
    if len(members) < floor:
        raise RemoteProtocolError(
            f"{name}-too-small",
            f"The {name.replace('-', ' ')} is too small.",
            expected=f"at least {floor}",
            found=len(members),
        )


def check_confirmations(
    session: Session,
    masking_set: Sequence[int],
    survivors: Sequence[int],
    signed_confirmations: Sequence[bytes],
) -> None:
    """At least t neighbours confirmed with their signature the same S and U as this device."""
    masking = masking_set_digest(session.ctx, masking_set)
    own = (masking, survivor_set_digest(session.ctx, masking, survivors))
    alive = frozenset(survivors)
    confirmed: set[int] = set()
    for signed in signed_confirmations:
        message, signer = verify(signed, session.ctx, Confirmation)
        if message.index not in alive or signer != session.identity_keys[message.index]:
            raise RemoteProtocolError(
                "confirmation-signer", "A confirmation is not from a survivor.", found=signer.hex()
            )
        if (message.masking_set_digest, message.survivor_set_digest) != own:
            raise RemoteProtocolError(
                "confirmations-differ",
                f"Device {message.index} was shown another set of survivors.",
                expected=own[1].hex(),
                found=message.survivor_set_digest.hex(),
            )
        confirmed.add(message.index)
    if len(confirmed.intersection(session.neighbours)) < session.threshold:
        raise RemoteProtocolError(
            "confirmations-too-few",
            "Too few neighbours confirmed the survivors.",
            expected=f"at least {session.threshold}",
            found=len(confirmed.intersection(session.neighbours)),
        )
