"""Step 1 and 2 at the aggregator: who may report in, and the closing of the roster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from secagg import adverts as advert_rules
from secagg import keys, sealing
from secagg.context import advert_digest, context, roster_digest
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.graph import parameters
from secagg.graph.harary import Graph
from secagg.limits import ADVERT_LIFETIME_MAX_S, CLOCK_SKEW_S
from secagg.messages import AdmittedModel, Advert, Roster, RosterEntry, sign
from secagg.server.advance import Outcome
from secagg.server.events import Deliver, Effect, ServerConfig, Wake
from secagg.server.states import Facts, Sharing


def check_advert(config: ServerConfig, signed_advert: bytes, now_s: float) -> Advert:
    """Verify a report-in before any cohort exists; see :func:`secagg.adverts.check_advert`.

    Raises:
        RemoteProtocolError: also ``advert-lifetime``: it would wait for more than a day.
    """
    manifest = config.manifest
    advert = advert_rules.check_advert(
        signed_advert, manifest, config.manifest_digest, manifest.partner_keys, now_s
    )
    latest = int(now_s) + ADVERT_LIFETIME_MAX_S + CLOCK_SKEW_S
    if advert.expires_at > latest:
        raise RemoteProtocolError(
            "advert-lifetime",
            "The advert would wait for its cohort for more than a day.",
            culprit=advert.certificate.identity_key,
            expected=f"until {latest} at most",
            found=advert.expires_at,
            remedy="Shorten the advert's lifetime; check the clock.",
        )
    for public_key in (advert.mask_key, advert.channel_key):
        try:  # a key to which nothing can be sealed would stop every neighbour
            sealing.check_kem_public_key(public_key)
        except RemoteProtocolError as error:
            error.culprit = advert.certificate.identity_key
            raise
    return advert


def open_cohort(
    config: ServerConfig,
    *,
    cohort: bytes,
    attempt: int,
    adverts: Sequence[bytes],
    now_s: float,
) -> Outcome:
    """Step 2: close the roster over these signed adverts and deliver it.

    Args:
        cohort: 32 bytes that name the cohort; ``attempt`` counts from 0.

    Raises:
        LocalProtocolError: ``cohort-*``: the adverts do not make a cohort of this task.
        RemoteProtocolError: an advert is bad; names its sender.
    """
    rules = config.manifest.cohort
    if not rules.size_min <= len(adverts) <= rules.size_max:
        raise LocalProtocolError(
            "cohort-size",
            "The cohort's size is out of the manifest's bounds.",
            expected=(rules.size_min, rules.size_max),
            found=len(adverts),
        )
    checked = sorted(
        ((check_advert(config, signed, now_s), signed) for signed in adverts),
        key=lambda pair: pair[0].certificate.identity_key,
    )
    identities = [advert.certificate.identity_key for advert, _ in checked]
    if len(set(identities)) != len(identities):
        raise LocalProtocolError("cohort-twice", "A device is in the cohort twice.")
    models = _admitted_models(config, [advert for advert, _ in checked])
    partners = tuple(sorted({advert.certificate.partner_key for advert, _ in checked}))
    entries = tuple(
        RosterEntry(
            advert.certificate.identity_key,
            advert_digest(signed),
            models.index(AdmittedModel(advert.model_version, advert.model_digest)),
            partners.index(advert.certificate.partner_key),
            advert.certificate.not_after,
            advert.certificate.signature,
        )
        for advert, signed in checked
    )
    order_seed = roster_digest(entries)
    graph = Graph(len(entries), rules.degree, order_seed)
    facts = Facts(
        cohort=cohort,
        attempt=attempt,
        ctx=context(
            task=config.manifest.task,
            cohort=cohort,
            attempt=attempt,
            manifest_digest=config.manifest_digest,
            models=models,
            roster=order_seed,
        ),
        roster=entries,
        adverts=tuple(advert for advert, _ in checked),
        models=models,
        graph=graph,
        threshold=parameters.threshold_on(graph, rules),
        removable_drops=config.manifest.removable_drops,
        partners=partners,
    )
    deadline_s = now_s + config.manifest.deadlines.share_s
    state = Sharing(facts=facts, accepted={}, dealt={}, signed_deals={}, deadline_s=deadline_s)
    signed_adverts = tuple(signed for _, signed in checked)
    effects: list[Effect] = [
        Deliver(index, partial(_roster, config, facts, signed_adverts, index), large=True)
        for index in range(facts.size)
    ]
    return state, (*effects, Wake(deadline_s))


def _roster(
    config: ServerConfig, facts: Facts, signed_adverts: Sequence[bytes], index: int
) -> bytes:
    roster = Roster(
        task=config.manifest.task,
        cohort=facts.cohort,
        attempt=facts.attempt,
        manifest_digest=config.manifest_digest,
        models=facts.models,
        entries=facts.roster,
        index=index,
        neighbour_adverts=tuple(
            (neighbour, signed_adverts[neighbour]) for neighbour in facts.graph.neighbours(index)
        ),
        partners=facts.partners,
    )
    return sign(roster, b"", keys.signing_key(config.task_key))


def _admitted_models(config: ServerConfig, adverts: Sequence[Advert]) -> tuple[AdmittedModel, ...]:
    """The models that these devices trained on, by version; devices would refuse any others."""
    rules = config.manifest.cohort
    behind = Counter(AdmittedModel(advert.model_version, advert.model_digest) for advert in adverts)
    models = tuple(sorted(behind, key=lambda model: model.version))
    versions = [model.version for model in models]
    if (
        len(set(versions)) != len(versions)
        or versions[-1] - versions[0] > rules.versions_back
        or (len(models) > 1 and min(behind.values()) < rules.behind_each_model)
    ):
        raise LocalProtocolError(
            "cohort-models",
            "A cohort admits one model of each version within the manifest's bound, each with "
            "enough devices behind it.",
            expected=(rules.versions_back + 1, rules.behind_each_model),
            found=[(model.version, count) for model, count in behind.items()][:8],
        )
    return models
