"""The aggregator's machine: one event in, the next state and effects out.

It is deterministic: the log of a cohort's events replays to the same state and effects. A message
that breaks the rules raises ``RemoteProtocolError``, naming its sender, and costs at most the
sender its place in the sum. A message that was taken before does nothing when it comes again.
"""

from __future__ import annotations

from dataclasses import replace

from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.hashing import digest
from secagg.messages import (
    KINDS,
    Complaint,
    Confirmation,
    Deals,
    MaskedInput,
    Ready,
    Receipt,
    Refusal,
    Unmask,
    verify,
)
from secagg.server import collect, transitions, unmask
from secagg.server.advance import (
    Outcome,
    abort,
    behind_enough,
    can_go_on,
    common,
    deliver,
    to_checking,
    to_confirming,
    to_masking,
    to_unmasking,
)
from secagg.server.events import (
    Cancel,
    DeviceMessage,
    DriverEvent,
    Ended,
    Event,
    Exclude,
    Received,
    ReleaseCommitted,
    RemoveMasks,
    ServerConfig,
    SumRefused,
    SumUnmasked,
    Tick,
    VectorAdded,
)
from secagg.server.states import (
    Aborted,
    Checking,
    Confirming,
    Live,
    Masking,
    PhaseT,
    Released,
    Releasing,
    Sharing,
    State,
    Unmasking,
    UnmaskingSum,
)
from secagg.transitions import check_move, due

_FROM_DEVICES: tuple[type[DeviceMessage], ...] = (
    Deals,
    Refusal,
    Ready,
    Complaint,
    MaskedInput,
    Confirmation,
    Unmask,
)


def step(config: ServerConfig, state: State, event: Event) -> Outcome:
    """Handle one event.

    Raises:
        RemoteProtocolError: the device's message breaks a rule; the state stays as it was.
        LocalProtocolError: the driver gave an event that is not due; it must not commit it.
    """
    if isinstance(state, (Released, Aborted)):
        return state, ()
    if isinstance(event, Received):
        message = _authenticate(state, event)
        if message is None:
            return state, ()
        kind: type[DeviceMessage | DriverEvent] = type(message)
        try:
            outcome = _take(config, state, event, message)
        except RemoteProtocolError as error:
            if error.culprit is None:
                error.culprit = state.facts.identity(event.index)  # its signature was verified
            raise
    else:
        kind = type(event)
        if kind not in transitions.TABLE[type(state)]:
            raise LocalProtocolError(
                "event-not-due",
                f"{kind.__name__} is not due in this phase.",
                expected=due(transitions.TABLE, state),
                found=kind.__name__,
            )
        outcome = _follow(config, state, event)
    check_move(transitions.TABLE, state, kind, outcome[0])
    return outcome


def _authenticate(state: Live, event: Received) -> DeviceMessage | None:
    """The verified message of the device at ``event.index``, or None if it was taken before or
    comes too late."""
    facts = state.facts
    if not 0 <= event.index < facts.size:
        raise LocalProtocolError(
            "index-out-of-roster", "No device has this index.", found=event.index
        )
    seen = digest("message", event.message)
    if seen in (of_kind.get(event.index) for of_kind in state.accepted.values()):
        return None
    sender = facts.identity(event.index)
    message, _ = verify(event.message, facts.ctx, *_FROM_DEVICES, signer=sender)
    name = type(message).__name__
    claimed = event.index if isinstance(message, Deals) else message.index
    if message.ctx != facts.ctx or claimed != event.index:
        raise RemoteProtocolError(
            "message-context",
            f"{name} is for another exchange or from another device.",
            culprit=sender,
            expected=event.index,
            found=claimed,
        )
    if event.index in state.accepted.get(KINDS[type(message)][0], {}):
        raise RemoteProtocolError(
            "message-changed",
            f"Another {name} was taken before; the first one stands.",
            culprit=sender,
        )
    if transitions.is_late(state, type(message)):
        return None
    if type(message) not in transitions.TABLE[type(state)]:
        raise RemoteProtocolError(
            "message-not-due",
            f"{name} is not due in this phase.",
            culprit=sender,
            expected=due(transitions.TABLE, state),
            found=name,
        )
    return message


def _take(config: ServerConfig, state: Live, event: Received, message: DeviceMessage) -> Outcome:
    """What a device's message does that is due."""
    match state, message:
        case Sharing(), Deals():
            return _on_deals(config, state, event, message)
        case Sharing(), Refusal():
            return _on_refusal(config, state, event, message)
        case Checking(), Ready() | Complaint():
            return _on_ready(config, state, event, message)
        case Masking(), MaskedInput():
            return _on_masked_input(config, state, event, message)
        case Confirming(), Confirmation():
            return _on_confirmation(config, state, event, message)
        case Unmasking(), Unmask():
            return _on_unmask(config, state, event, message)
    raise AssertionError(f"{state.phase} has a row for {type(message).__name__} and no handler")


def _follow(config: ServerConfig, state: Live, event: DriverEvent) -> Outcome:
    """What an event of the driver does that is due."""
    match state, event:
        case _, Tick():
            return _on_tick(config, state, event)
        case Sharing() | Checking(), Exclude():
            return _on_exclude(config, state, event)
        case Masking(), VectorAdded():
            return _on_vector_added(config, state, event)
        case UnmaskingSum(), SumUnmasked():
            return _on_sum_unmasked(state)
        case UnmaskingSum() | Releasing(), SumRefused():
            return abort(config, state, event.reason)
        case Releasing(), ReleaseCommitted():
            return _on_release(config, state, event)
        case _, Cancel():
            return abort(config, state, event.reason)
    raise AssertionError(f"{state.phase} has a row for {type(event).__name__} and no handler")


def _accept(state: PhaseT, event: Received, message: DeviceMessage) -> PhaseT:
    kind = KINDS[type(message)][0]
    of_kind = {**state.accepted.get(kind, {}), event.index: digest("message", event.message)}
    return replace(state, accepted={**state.accepted, kind: of_kind})


# -- sharing ----------------------------------------------------------------------------------


def _due(state: Sharing) -> frozenset[int]:
    """Devices that may still deal."""
    return frozenset(range(state.facts.size)).difference(state.dealt, state.gone, state.excluded)


def _on_deals(config: ServerConfig, state: Sharing, event: Received, message: Deals) -> Outcome:
    state = _accept(collect.take_deals(state, event.index, message), event, message)
    if _due(state):
        return state, ()
    return to_checking(config, state, event.now_s)


def _on_refusal(config: ServerConfig, state: Sharing, event: Received, message: Refusal) -> Outcome:
    """One device less, at once; the end if the others cannot make a cohort."""
    sharing, refused = collect.take_refusal(state, event.index, message)
    state = _accept(sharing, event, message)
    left = _due(state).union(state.dealt) - state.excluded
    rest = behind_enough(config, state.facts, left)
    if _due(state) and can_go_on(config, state.facts, rest):
        return state, (refused,)
    checking, effects = to_checking(config, state, event.now_s)
    return checking, (refused, *effects)


def _on_ready(
    config: ServerConfig, state: Checking, event: Received, message: Ready | Complaint
) -> Outcome:
    state = _accept(collect.take_ready(state, event.index, message), event, message)
    return _when_checked(config, state, event.now_s)


def _when_checked(config: ServerConfig, state: Checking, now_s: float) -> Outcome:
    """On to masking once every dealer that is not barred has answered."""
    if not state.excluded.union(state.answered).issuperset(state.dealers):
        return state, ()
    return to_masking(config, state, now_s)


def _on_exclude(config: ServerConfig, state: Sharing | Checking, event: Exclude) -> Outcome:
    """Bar a device: S will not hold it. It hears so when the phase ends, like all who are out."""
    if event.index in state.excluded:
        return state, ()
    state = replace(state, excluded=state.excluded | {event.index})
    if event.now_s is None:
        return state, ()
    due = _due(state) if isinstance(state, Sharing) else frozenset[int]()
    present = due.union(state.dealt) if isinstance(state, Sharing) else frozenset(state.dealers)
    left = behind_enough(config, state.facts, present - state.excluded)
    if not can_go_on(config, state.facts, left):
        return abort(config, state, "too-few-left")  # at once, and the others are not at fault
    if isinstance(state, Checking):
        return _when_checked(config, state, event.now_s)
    return (state, ()) if due else to_checking(config, state, event.now_s)


def _on_masked_input(
    config: ServerConfig, state: Masking, event: Received, message: MaskedInput
) -> Outcome:
    masking, accept = collect.take_masked_input(config, state, event.index, message)
    return _accept(masking, event, message), (accept,)


def _on_vector_added(config: ServerConfig, state: Masking, event: VectorAdded) -> Outcome:
    state = collect.take_vector(state, event.index)
    if len(state.added) < len(state.masking_set):
        return state, ()
    return to_confirming(config, state, event.now_s)


def _on_confirmation(
    config: ServerConfig, state: Confirming, event: Received, message: Confirmation
) -> Outcome:
    confirming = collect.take_confirmation(state, event.index, message, event.message)
    state = _accept(confirming, event, message)
    if len(state.confirmations) < len(state.survivors):
        return state, ()
    return to_unmasking(config, state, event.now_s)


def _on_unmask(config: ServerConfig, state: Unmasking, event: Received, message: Unmask) -> Outcome:
    state = _accept(unmask.take_unmask(state, event.index, message), event, message)
    if state.lacking:
        return state, ()
    try:
        plan = unmask.make_plan(config, state)
    except unmask.Convicted as error:
        return abort(config, state, error.reason, error.findings)
    unmasking_sum = UnmaskingSum(
        **common(state), masking_set=state.masking_set, survivors=state.survivors, plan=plan
    )
    return unmasking_sum, (RemoveMasks(plan),)


def _on_sum_unmasked(state: UnmaskingSum) -> Outcome:
    releasing = Releasing(**common(state), masking_set=state.masking_set, survivors=state.survivors)
    return releasing, ()


def _on_release(config: ServerConfig, state: Releasing, event: ReleaseCommitted) -> Outcome:
    released = Released(
        **common(state),
        masking_set=state.masking_set,
        survivors=state.survivors,
        release=event.release,
        leaf_index=event.leaf_index,
    )
    receipt = Receipt(state.facts.ctx, event.release, event.leaf_index)
    told = deliver(config, state.facts, state.survivors, receipt)
    return released, (*told, Ended(None, state.culprits))


def _on_tick(config: ServerConfig, state: Live, event: Tick) -> Outcome:
    if event.now_s < state.deadline_s:
        return state, ()
    match state:
        case Sharing():
            return to_checking(config, state, event.now_s)
        case Checking():
            return to_masking(config, state, event.now_s)
        case Masking():
            return to_confirming(config, state, event.now_s)
        case Confirming():
            return to_unmasking(config, state, event.now_s)
        case Unmasking():
            return abort(config, state, "too-few-shares")
    return state, ()  # opening and releasing are the aggregator's own work
