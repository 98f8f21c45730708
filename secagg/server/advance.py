"""From one phase to the next: who goes on, who is told that it is left out, or the end.

A phase ends when everyone due has answered or its deadline has passed. The cohort goes on only if
the sum is still large enough and every secret that will be needed still has t holders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from secagg import keys
from secagg.context import LEFT_OUT
from secagg.evidence import DEAL_SIGNATURE
from secagg.graph import parameters
from secagg.messages import Abort, Confirmations, Inbox, MaskingSet, Message, SurvivorSet, sign
from secagg.server import collect, unmask
from secagg.server.events import Deliver, Effect, Ended, ServerConfig, Wake
from secagg.server.states import (
    Aborted,
    Checking,
    Common,
    Confirming,
    Facts,
    Finding,
    Masking,
    Releasing,
    Sharing,
    State,
    Unmasking,
    UnmaskingSum,
    masking_set_of,
)

Outcome = tuple[State, tuple[Effect, ...]]


def deliver(
    config: ServerConfig, facts: Facts, to: Collection[int], message: Message
) -> list[Effect]:
    signed = sign(message, facts.ctx, keys.signing_key(config.task_key))
    return [Deliver(index, lambda: signed) for index in sorted(to)]


def common(state: State) -> Common:
    return Common(
        facts=state.facts,
        accepted=state.accepted,
        culprits=state.culprits,
        findings=state.findings,
        gone=state.gone,
        excluded=state.excluded,
        pseudonyms=state.pseudonyms,
    )


def abort(
    config: ServerConfig, state: State, reason: str, findings: Sequence[Finding] = ()
) -> Outcome:
    fields = common(state)
    named = (state.facts.identity(finding.device) for finding in findings)
    fields["culprits"] = tuple(dict.fromkeys((*state.culprits, *named)))
    fields["findings"] = (*state.findings, *findings)
    aborted = Aborted(
        **fields,
        reason=reason,
        silent=_silent(state),
        summed=state.survivors if isinstance(state, UnmaskingSum | Releasing) else (),
        masking_set=masking_set_of(state),
    )
    rest = frozenset(range(state.facts.size)) - state.gone
    told = deliver(config, state.facts, rest, Abort(state.facts.cohort, reason))
    return aborted, (*told, Ended(reason, aborted.culprits))


def _silent(state: State) -> tuple[int, ...]:
    """Devices for which the phase still waits."""
    due: Collection[int] = ()
    answered: Collection[int] = ()
    match state:
        case Sharing():
            due, answered = range(state.facts.size), (*state.dealt, *state.gone)
        case Checking():
            due, answered = state.dealers, state.answered
        case Masking():
            due, answered = state.masking_set, state.added
        case Confirming():
            due, answered = state.survivors, state.confirmations
        case Unmasking():
            due, answered = state.survivors, state.shares
    return tuple(sorted(frozenset(due).difference(answered)))


def leave_out(
    config: ServerConfig, state: State, stay: Collection[int]
) -> tuple[Common, list[Effect]]:
    """Fields of the next phase, and a word to each device that has no part in it."""
    out = frozenset(range(state.facts.size)) - state.gone - frozenset(stay)
    fields = common(state)
    fields["gone"] = state.gone | out
    return fields, deliver(config, state.facts, out, Abort(state.facts.cohort, LEFT_OUT))


def openable(facts: Facts, owners: Collection[int], holders: Collection[int]) -> bool:
    """Every owner has at least t of the holders among its neighbours."""
    present = frozenset(holders)
    return all(
        len(present.intersection(facts.graph.neighbours(owner))) >= facts.threshold
        for owner in owners
    )


def agreeable(config: ServerConfig, facts: Facts, devices: Collection[int]) -> bool:
    """So many devices can confirm one survivor set that no other can be confirmed too; on the
    complete graph every device's own threshold sees to that."""
    needed = parameters.confirmations_needed(facts.size, config.manifest.cohort.corrupt_max)
    return facts.graph.is_complete or len(devices) >= needed


def behind_enough(config: ServerConfig, facts: Facts, devices: Collection[int]) -> tuple[int, ...]:
    """Those of the devices, sorted, behind whose model there are enough of them: the others'
    updates must not be in the sum."""
    behind = Counter(facts.roster[index].model for index in devices)
    floor = config.manifest.cohort.behind_each_model
    return tuple(index for index in sorted(devices) if behind[facts.roster[index].model] >= floor)


def can_go_on(config: ServerConfig, facts: Facts, devices: Collection[int]) -> bool:
    """These devices can make a sum, if none of them is lost."""
    enough = len(devices) >= config.manifest.cohort.survivors_min
    return enough and openable(facts, devices, devices)


def to_checking(config: ServerConfig, state: Sharing, now_s: float) -> Outcome:
    dealers = behind_enough(config, state.facts, state.dealt.keys() - state.excluded)
    if not can_go_on(config, state.facts, dealers):
        return abort(config, state, "too-few-dealers")
    deadline_s = now_s + config.manifest.deadlines.check_s
    fields, effects = leave_out(config, state, dealers)
    checking = Checking(
        **fields, deadline_s=deadline_s, dealt=state.dealt, dealers=dealers, accusations={}
    )
    effects += (
        Deliver(recipient, partial(_inbox, config, state, recipient), large=True)
        for recipient in dealers
    )
    return checking, (*effects, Wake(deadline_s))


def _inbox(config: ServerConfig, state: Sharing, recipient: int) -> bytes:
    facts = state.facts
    deals = tuple(
        state.signed_deals[dealer][recipient]
        for dealer in facts.graph.neighbours(recipient)
        if dealer in state.signed_deals
    )
    return sign(Inbox(facts.ctx, deals), facts.ctx, keys.signing_key(config.task_key))


def to_masking(config: ServerConfig, state: Checking, now_s: float) -> Outcome:
    ready, named = collect.ready_devices(config, state)
    ready = behind_enough(config, state.facts, ready)
    culprits = (*state.culprits, *(state.facts.identity(index) for index in sorted(named)))
    findings = (
        Finding(dealer, DEAL_SIGNATURE, recipient)
        for dealer, recipient in sorted(state.guilty.items())
    )
    state = replace(state, culprits=culprits, findings=(*state.findings, *findings))
    if not can_go_on(config, state.facts, ready):
        return abort(config, state, "too-few-ready")
    deadline_s = now_s + config.manifest.deadlines.masked_input_s
    fields, effects = leave_out(config, state, ready)
    masking = Masking(**fields, deadline_s=deadline_s, dealt=state.dealt, masking_set=ready)
    effects += deliver(config, state.facts, ready, MaskingSet(state.facts.ctx, ready))
    return masking, (*effects, Wake(deadline_s))


def to_confirming(config: ServerConfig, state: Masking, now_s: float) -> Outcome:
    survivors = tuple(sorted(state.added))
    drops = state.facts.removable_drops
    noisy = not drops or len(state.masking_set) - len(survivors) <= drops[-1]
    enough = len(survivors) >= config.manifest.cohort.survivors_min
    if (
        not enough
        or survivors != behind_enough(config, state.facts, survivors)
        or not noisy
        or not agreeable(config, state.facts, survivors)
        or not openable(state.facts, state.masking_set, survivors)
    ):
        return abort(config, state, "too-few-vectors")
    deadline_s = now_s + config.manifest.deadlines.confirm_s
    fields, effects = leave_out(config, state, survivors)
    confirming = Confirming(
        **fields,
        deadline_s=deadline_s,
        dealt=state.dealt,
        masking_set=state.masking_set,
        survivors=survivors,
        confirmations={},
    )
    effects += deliver(config, state.facts, survivors, SurvivorSet(state.facts.ctx, survivors))
    return confirming, (*effects, Wake(deadline_s))


def to_unmasking(config: ServerConfig, state: Confirming, now_s: float) -> Outcome:
    confirmed = sorted(state.confirmations)
    if (
        not agreeable(config, state.facts, confirmed)
        or not openable(state.facts, confirmed, confirmed)
        or not openable(state.facts, state.masking_set, confirmed)
    ):
        return abort(config, state, "too-few-confirmations")
    deadline_s = now_s + config.manifest.deadlines.unmask_s
    due = unmask.secrets_due(state.facts, state.masking_set, state.survivors, state.masking_set)
    unmasking = Unmasking(
        **common(state),
        deadline_s=deadline_s,
        dealt=state.dealt,
        masking_set=state.masking_set,
        survivors=state.survivors,
        shares={},
        lacking=dict.fromkeys(due, state.facts.threshold),
    )
    proof = Confirmations(state.facts.ctx, tuple(state.confirmations[index] for index in confirmed))
    effects = deliver(config, state.facts, state.survivors, proof)
    return unmasking, (*effects, Wake(deadline_s))
