"""The device's machine: one event in, the next state and effects out.

An input that is not authentic, or not for this exchange, raises ``RemoteProtocolError`` and
changes nothing. An authentic message of the aggregator that breaks the protocol's rules ends the
exchange in ``Failed``. A message that was obeyed before does nothing when it comes again.
"""

from __future__ import annotations

import hashlib

from secagg import keys, masks, ring, sealing
from secagg.client import checks, deals, transitions
from secagg.client.events import (
    Cancel,
    ClientConfig,
    Effect,
    Event,
    Failed,
    Finished,
    ProvideVector,
    Received,
    Send,
    Upload,
    VectorReady,
)
from secagg.client.states import (
    Advertised,
    AwaitingVector,
    Checked,
    Confirmed,
    Exchange,
    Joined,
    Shared,
    State,
    Unmasked,
    Uploading,
    accept,
)
from secagg.context import (
    CHANNEL_KEY,
    LEFT_OUT,
    MASK_KEY,
    SHARE_OF_MASK_SECRET,
    SHARE_OF_NOISE_SEED,
    SHARE_OF_SELF_SEED,
    context,
    masking_set_digest,
    pair_sign,
    pseudonym,
    removed_levels,
    roster_digest,
    self_seed_commitment,
    survivor_set_digest,
)
from secagg.errors import (
    ConfigurationError,
    LocalProtocolError,
    RemoteProtocolError,
    SecaggError,
)
from secagg.graph import parameters
from secagg.graph.harary import Graph
from secagg.hashing import digest
from secagg.limits import DIGEST_BYTES, SEED_BYTES
from secagg.messages import (
    KINDS,
    Abort,
    Advert,
    Complaint,
    Confirmation,
    Confirmations,
    ContextMessage,
    Inbox,
    MaskedInput,
    MaskingSet,
    Message,
    Ready,
    Receipt,
    Refusal,
    RevealedShare,
    Roster,
    SurvivorSet,
    Unmask,
    sign,
    verify,
)
from secagg.secret import Secret
from secagg.tools import Tools
from secagg.transitions import check_move, due

Outcome = tuple[State, tuple[Effect, ...]]
_AFTER_ROSTER: tuple[type[ContextMessage | Abort], ...] = (
    Inbox,
    MaskingSet,
    SurvivorSet,
    Confirmations,
    Receipt,
    Abort,
)


def advertise(
    config: ClientConfig,
    *,
    model_version: int,
    model_digest: bytes,
    now_s: float,
    lifetime_s: float,
    tools: Tools,
) -> tuple[Advertised, tuple[Send]]:
    """Step 1: draw this exchange's secrets and advertise its public keys.

    Args:
        model_version, model_digest: the global model that the device trained from.
        now_s: Unix seconds; the advert expires ``lifetime_s`` later.
    """
    mask_secret = Secret(tools.random_bytes(SEED_BYTES))
    self_seed = Secret(tools.random_bytes(SEED_BYTES))
    channel_secret = Secret(tools.random_bytes(SEED_BYTES))
    expires_at = int(now_s + lifetime_s)
    trusted = config.partner_keys & frozenset(config.manifest.partner_keys)
    alone = trusted <= {config.certificate.partner_key}
    advert = Advert(
        task=config.manifest.task,
        manifest_digest=config.manifest_digest,
        model_version=model_version,
        model_digest=model_digest,
        certificate=config.certificate,
        mask_key=sealing.kem_public_key(mask_secret, MASK_KEY),
        channel_key=sealing.kem_public_key(channel_secret, CHANNEL_KEY),
        self_seed_commitment=self_seed_commitment(config.certificate.identity_key, self_seed),
        nonce=tools.random_bytes(DIGEST_BYTES),
        expires_at=expires_at,
        trusted=() if alone else tuple(sorted(trusted)),
    )
    signed = _sign(config, advert, b"")
    state = Advertised(signed, model_digest, expires_at, mask_secret, self_seed, channel_secret)
    return state, (Send(signed),)


def step(config: ClientConfig, state: State, event: Event, tools: Tools) -> Outcome:
    """Handle one event.

    Raises:
        RemoteProtocolError: the message is not authentic, not for this exchange, or not due now;
            the state stays as it was.
        LocalProtocolError: the driver gave an event or a vector that was not asked for.
    """
    if isinstance(state, (Finished, Failed)):
        return state, ()
    kind: type[transitions.Due]
    match event:
        case Cancel(reason, text):
            kind = Cancel
            outcome = _fail(reason, text)
        case VectorReady():
            kind = VectorReady
            if not isinstance(state, AwaitingVector):
                raise LocalProtocolError(
                    "vector-not-due",
                    "A vector is taken once, in answer to ProvideVector.",
                    expected=AwaitingVector.phase,
                    found=state.phase,
                )
            outcome = _mask(config, state, event)
        case Received():
            message = _authenticate(config, state, event.message)
            if message is None:
                return state, ()
            kind = type(message)
            outcome = _obey(config, state, message, event, tools)
    check_move(transitions.TABLE, state, kind, outcome[0])
    return outcome


def _sign(config: ClientConfig, message: Message, ctx: bytes) -> bytes:
    return sign(message, ctx, keys.signing_key(config.identity))


def _fail(reason: str, message: str, culprit: bytes | None = None) -> Outcome:
    failed = Failed(reason, message, culprit)
    return failed, (failed,)


def _message_digest(message: bytes) -> bytes:
    return digest("message", message)


def _authenticate(
    config: ClientConfig, state: Advertised | Joined, signed: bytes
) -> Message | None:
    """The verified message, or None if it was obeyed before."""
    task_key = config.manifest.task_key
    if isinstance(state, Advertised):
        roster, _ = verify(signed, b"", Roster, signer=task_key)
        checks.check_addressed(config, state, roster)
        return roster
    exchange = state.session
    if _message_digest(signed) in exchange.accepted.values():
        return None
    message, _ = verify(signed, exchange.ctx, *_AFTER_ROSTER, signer=task_key)
    checks.check_context(exchange, message)
    name = type(message).__name__
    if KINDS[type(message)][0] in exchange.accepted:
        raise RemoteProtocolError(
            "message-changed", f"Another {name} was obeyed before; the first one stands."
        )
    if type(message) not in transitions.TABLE[type(state)]:
        raise RemoteProtocolError(
            "message-not-due",
            f"{name} is not due in this phase.",
            expected=due(transitions.TABLE, state),
            found=name,
        )
    return message


def _obey(
    config: ClientConfig, state: State, message: Message, event: Received, tools: Tools
) -> Outcome:
    seen = _message_digest(event.message)
    try:
        match state, message:
            case Advertised(), Roster():
                return _join(config, state, message, event, tools)
            case Shared(), Inbox():
                return _check(config, state, message, seen)
            case Checked(), MaskingSet():
                return _fix_masking_set(config, state, message, seen)
            case Uploading(), SurvivorSet():
                return _confirm(config, state, message, seen)
            case Confirmed(), Confirmations():
                return _unmask(config, state, message, seen)
            case Confirmed() | Unmasked(), Receipt():
                return _finish(message)
            case _, Abort():
                return _abort(message)
    except RemoteProtocolError as error:
        return _fail(error.reason, str(error), error.culprit)
    raise AssertionError(f"{state.phase} has a row for {type(message).__name__} and no handler")


def _join(
    config: ClientConfig, state: Advertised, roster: Roster, event: Received, tools: Tools
) -> Outcome:
    try:
        return _share(config, state, roster, event, tools)
    except RemoteProtocolError as error:
        return _refuse(config, roster, error, error.culprit)
    except ConfigurationError as error:  # a size for which there is no graph or threshold
        return _refuse(config, roster, error)


def _context(roster: Roster) -> bytes:
    return context(
        task=roster.task,
        cohort=roster.cohort,
        attempt=roster.attempt,
        manifest_digest=roster.manifest_digest,
        models=roster.models,
        roster=roster_digest(roster.entries),
    )


def _refuse(
    config: ClientConfig, roster: Roster, error: SecaggError, culprit: bytes | None = None
) -> Outcome:
    """End here, and tell the aggregator which roster was refused, why, and because of whom."""
    failed, effects = _fail(error.reason, str(error), culprit)
    others = {e.identity_key: at for at, e in enumerate(roster.entries) if at != roster.index}
    entry = -1 if culprit is None else others.get(culprit, -1)
    try:
        ctx = _context(roster)
    except OverflowError:  # numbers that no cohort has, so there is none to answer in
        return failed, effects
    refusal = Refusal(ctx, roster.index, error.reason, entry)
    return failed, (Send(_sign(config, refusal, ctx)), *effects)


def _share(
    config: ClientConfig, state: Advertised, roster: Roster, event: Received, tools: Tools
) -> Outcome:
    checks.check_task(config, state, roster, event.now_s)
    checks.check_size(config, roster)
    staleness = checks.check_models(config, state, roster)
    checks.check_order(roster)
    rules = config.manifest.cohort
    order_seed = roster_digest(roster.entries)
    graph = Graph(len(roster.entries), rules.degree, order_seed)
    certificates = checks.check_certificates(config, roster, event.now_s)
    adverts = checks.check_neighbours(config, roster, graph, certificates, event.now_s)
    exchange = Exchange(
        ctx=_context(roster),
        cohort=roster.cohort,
        index=roster.index,
        identity_keys=tuple(entry.identity_key for entry in roster.entries),
        neighbours=tuple(adverts),
        threshold=parameters.threshold_on(graph, rules),
        accepted={KINDS[Roster][0]: _message_digest(event.message)},
        degree=graph.degree,
        order_seed=graph.order_seed,
        models=roster.models,
        staleness=staleness,
        model_places=tuple(e.model for e in roster.entries) if len(roster.models) > 1 else (),
    )
    dealt, noise_seeds = deals.make_deals(config, state, exchange, adverts, tools)
    shared = Shared(exchange, state.mask_secret, state.self_seed, state.channel_secret, noise_seeds)
    return shared, (Send(_sign(config, dealt, exchange.ctx)),)


def _check(config: ClientConfig, state: Shared, inbox: Inbox, seen: bytes) -> Outcome:
    exchange = accept(state.session, KINDS[Inbox][0], seen)
    dealt = deals.decrypt_inbox(state, inbox)
    name = pseudonym(config.identity, exchange.ctx)
    answer: Message = Ready(exchange.ctx, exchange.index, name)
    if dealt.refused:
        accused = tuple(sorted(dealt.refused))
        evidence = tuple(dealt.refused[dealer] for dealer in accused)
        answer = Complaint(exchange.ctx, exchange.index, accused, evidence, name)
    checked = Checked(exchange, state.self_seed, dealt.pair_seeds, dealt.shares, state.noise_seeds)
    return checked, (Send(_sign(config, answer, exchange.ctx)),)


def _fix_masking_set(
    config: ClientConfig, state: Checked, message: MaskingSet, seen: bytes
) -> Outcome:
    exchange = accept(state.session, KINDS[MaskingSet][0], seen)
    members, inside = message.members, frozenset(message.members)
    checks.check_masking_set(config, exchange, members, tuple(state.shares))
    awaiting = AwaitingVector(
        exchange,
        members,
        state.self_seed,
        {index: seed for index, seed in state.pair_seeds.items() if index in inside},
        {index: shares for index, shares in state.shares.items() if index in inside},
    )
    provide = ProvideVector(
        exchange.ctx, len(members), state.noise_seeds, exchange.models, exchange.staleness
    )
    return awaiting, (provide,)


def _mask(config: ClientConfig, state: AwaitingVector, event: VectorReady) -> Outcome:
    """Step 3: y = x + PRG(self seed) + sum of the signed masks of neighbours in S."""
    encoding = config.manifest.encoding
    bits = encoding.ring_bits
    length = ring.payload_length(config.manifest.data_length, encoding.slice_length)
    dtype = ring.lane_dtype(bits)
    if event.vector.shape != (length,) or event.vector.dtype != dtype:
        raise LocalProtocolError(
            "vector-shape",
            "The vector is not the payload that the manifest describes.",
            expected=((length,), str(dtype)),
            found=(event.vector.shape, str(event.vector.dtype)),
        )
    if not (event.vector[:: encoding.slice_length + 1] == 1).all():
        raise LocalProtocolError(
            "vector-checks", "Every check coordinate of a device's payload is 1.", expected=1
        )
    exchange = state.session
    salt = masking_set_digest(exchange.ctx, state.masking_set)
    terms = [masks.MaskTerm(masks.mask_key(state.self_seed, salt), 1)]
    terms += [
        masks.MaskTerm(masks.mask_key(seed, salt), pair_sign(exchange.index, neighbour))
        for neighbour, seed in sorted(state.pair_seeds.items())
    ]
    masked = event.vector.copy()
    masks.apply_masks(masked, terms, bits)
    payload = ring.pack(masked, bits)
    header = MaskedInput(
        ctx=exchange.ctx,
        index=exchange.index,
        masking_set_digest=salt,
        vector_digest=hashlib.sha256(payload).digest(),
        size_bytes=len(payload),
    )
    uploading = Uploading(exchange, state.masking_set, state.shares)
    return uploading, (Upload(_sign(config, header, exchange.ctx), payload),)


def _confirm(config: ClientConfig, state: Uploading, message: SurvivorSet, seen: bytes) -> Outcome:
    exchange = accept(state.session, KINDS[SurvivorSet][0], seen)
    checks.check_survivor_set(config, exchange, state.masking_set, message.members)
    masking = masking_set_digest(exchange.ctx, state.masking_set)
    survivors = survivor_set_digest(exchange.ctx, masking, message.members)
    confirmation = Confirmation(exchange.ctx, exchange.index, masking, survivors)
    confirmed = Confirmed(exchange, state.masking_set, message.members, state.shares)
    return confirmed, (Send(_sign(config, confirmation, exchange.ctx)),)


def _unmask(config: ClientConfig, state: Confirmed, message: Confirmations, seen: bytes) -> Outcome:
    """Step 5: per neighbour in S, the share of its mask secret if it dropped, else those of its
    self seed and of the noise that the survivors do not need. Then all shares are forgotten, so
    there is nothing left for a second answer."""
    exchange = accept(state.session, KINDS[Confirmations][0], seen)
    checks.check_confirmations(
        config, exchange, state.masking_set, state.survivors, message.confirmations
    )
    survivors = frozenset(state.survivors)
    levels = removed_levels(
        config.manifest.removable_drops, len(state.masking_set), len(state.survivors)
    )
    shares: list[RevealedShare] = []
    for owner, held in sorted(state.shares.items()):
        if owner not in survivors:
            shares.append(RevealedShare(owner, SHARE_OF_MASK_SECRET, held.of_mask_secret.reveal()))
            continue
        shares.append(RevealedShare(owner, SHARE_OF_SELF_SEED, held.of_self_seed.reveal()))
        shares += (
            RevealedShare(owner, SHARE_OF_NOISE_SEED + level, held.of_noise[level].reveal())
            for level in levels
        )
    answer = Unmask(exchange.ctx, exchange.index, tuple(shares))
    return Unmasked(exchange), (Send(_sign(config, answer, exchange.ctx)),)


def _finish(receipt: Receipt) -> Outcome:
    finished = Finished(receipt.release, receipt.leaf_index)
    return finished, (finished,)


def _abort(message: Abort) -> Outcome:
    if message.reason == LEFT_OUT:
        return _fail(LEFT_OUT, "The cohort goes on without this device.")
    return _fail("cohort-aborted", f"The aggregator ended the cohort: {message.reason[:200]!r}.")
