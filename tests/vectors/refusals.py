"""Named negative vectors of whole exchanges: what a device answers to an aggregator that lies.

Device 0 of the ``complete`` exchange obeys what it was sent up to a point; then comes a message
that is signed by the task key and breaks one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from secagg import client, keys, messages
from secagg.errors import RemoteProtocolError
from secagg.messages import KINDS, Message
from secagg.secret import Secret
from secagg.simulation import EPOCH_S, Device, make_devices
from secagg.tools import Tools
from tests.vectors import transcript

DEVICE = 0
change = msgspec.structs.replace


class Exchange:
    """The recorded exchange and one device of it that can be brought to any point."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.shown = transcript.task()
        self.down = {
            line["kind"]: bytes.fromhex(line["signed"])
            for line in record["messages"]
            if line["device"] == DEVICE and line["way"] == "down"
        }
        self.ctx = self.message("MaskingSet").ctx  # type: ignore[attr-defined]
        self.index = self.message("Roster").index  # type: ignore[attr-defined]

    def message(self, kind: str) -> Message:
        return messages.peek(self.down[kind], *KINDS)[0]

    def sign(self, message: Message, key: Secret | None = None) -> bytes:
        ctx = b"" if isinstance(message, messages.Roster) else self.ctx
        return messages.sign(message, ctx, keys.signing_key(key or self.shown.server.task_key))

    def device_before(self, kind: str) -> Device:
        seals = self.record["seals"]

        def seal(public_key: bytes, info: bytes, plaintext: bytes) -> bytes:
            return bytes.fromhex(seals[transcript.seal_name(public_key, info, plaintext)])

        device = make_devices(self.shown, transcript.inputs(), seed=transcript.SEED)[DEVICE]
        device.tools = Tools(random_bytes=device.tools.random_bytes, seal=seal)
        for earlier, signed in self.down.items():
            if earlier == kind:
                break
            device.receive(signed, EPOCH_S + 1.0)
        return device

    def outcome(self, kind: str, signed: bytes) -> dict[str, Any]:
        """``refused``: nothing changes; ``ends``: the exchange is over for this device, which of a
        roster says why; ``answers``: the device goes on with a message of this kind."""
        device = self.device_before(kind)
        event = client.Received(signed, EPOCH_S + 1.0)
        try:
            state, effects = client.step(device.config, device.state, event, device.tools)
        except RemoteProtocolError as error:
            return {"outcome": "refused", "reason": error.reason}
        if isinstance(state, client.Failed):
            *told, _ = effects
            ended: dict[str, Any] = {"outcome": "ends", "reason": state.reason}
            for said in told:
                assert isinstance(said, client.Send)
                ended["refusal"] = said.message.hex()
                ended["entry"] = messages.peek(said.message, messages.Refusal)[0].entry
            return ended
        (sent,) = effects
        assert isinstance(sent, client.Send)
        answer, _ = messages.peek(sent.message, *KINDS)
        return {"outcome": "answers", "reason": type(answer).__name__}


def changed_entry(
    entries: Sequence[messages.RosterEntry], index: int, **changed: Any
) -> tuple[messages.RosterEntry, ...]:
    return (*entries[:index], change(entries[index], **changed), *entries[index + 1 :])


def _rosters(e: Exchange) -> Iterator[tuple[str, bytes]]:
    roster = e.message("Roster")
    assert isinstance(roster, messages.Roster)
    entries, adverts = list(roster.entries), list(roster.neighbour_adverts)
    others = [index for index in range(len(entries)) if index != e.index]
    swapped = list(entries)
    swapped[others[0]], swapped[others[1]] = swapped[others[1]], swapped[others[0]]
    doubled = list(entries)
    doubled[others[1]] = doubled[others[0]]
    other = messages.AdmittedModel(roster.models[0].version + 1, b"m" * 32)
    changes: dict[str, dict[str, Any]] = {
        "another-task": {"task": "another"},
        "another-manifest": {"manifest_digest": b"m" * 32},
        "cohort-of-31-bytes": {"cohort": b"c" * 31},
        "attempt-of-33-bits": {"attempt": 1 << 32},
        "no-model": {"models": ()},
        "another-model": {"models": (other,)},
        "two-models": {"models": (*roster.models, other)},
        "entries-out-of-order": {"entries": tuple(swapped)},
        "an-identity-twice": {"entries": tuple(doubled)},
        "no-partners": {"partners": ()},
        "partners-twice": {"partners": roster.partners * 2},
        "an-entry-of-no-partner": {"entries": changed_entry(entries, others[0], partner=1)},
        "an-entry-without-a-certificate": {
            "entries": changed_entry(entries, others[0], certificate_signature=b"")
        },
        "an-entry-with-anothers-certificate": {
            "entries": changed_entry(
                entries,
                others[0],
                certificate_signature=entries[others[1]].certificate_signature,
            )
        },
        "an-entry-that-expires-later": {
            "entries": changed_entry(entries, others[0], not_after=entries[others[0]].not_after + 1)
        },
        "no-place": {"index": len(entries)},
        "negative-place": {"index": -1},
        "anothers-place": {"index": others[0]},
        "an-advert-missing": {"neighbour_adverts": tuple(adverts[1:])},
        "adverts-out-of-order": {"neighbour_adverts": tuple(reversed(adverts))},
        "anothers-advert": {
            "neighbour_adverts": ((adverts[0][0], adverts[1][1]), *adverts[1:]),
        },
        "ones-own-advert-as-a-neighbours": {
            "neighbour_adverts": ((e.index, adverts[0][1]), *adverts[1:]),
        },
    }
    for name, changed in changes.items():
        yield name, e.sign(change(roster, **changed))
    yield "roster-signed-by-a-device", e.sign(roster, e.shown.devices[1].identity)


def _inboxes(e: Exchange) -> Iterator[tuple[str, bytes]]:
    inbox = e.message("Inbox")
    assert isinstance(inbox, messages.Inbox)
    first, second, *rest = inbox.deals
    own = next(
        bytes.fromhex(line["signed"])
        for line in e.record["messages"]
        if (line["device"], line["way"], line["kind"]) == (DEVICE, "up", "Deals")
    )
    deals, _ = messages.peek(own, messages.Deals)
    deal, envelope = messages.peek(first, messages.Deal)
    forged = e.sign(deal)
    bent = msgspec.msgpack.encode(change(envelope, signature=bytes(64)))
    for name, listed in {
        "a-dealer-twice": (first, first, second, *rest),
        "dealers-out-of-order": (second, first, *rest),
        "ones-own-deal": (deals.deals[0], *inbox.deals),
        "a-deal-that-is-no-message": (b"deal", second, *rest),
        "a-deal-signed-by-the-aggregator": (forged, second, *rest),
        "a-deal-with-a-bad-signature": (bent, second, *rest),
    }.items():
        yield name, e.sign(change(inbox, deals=listed))
    yield "inbox-of-another-context", e.sign(change(inbox, ctx=b"c" * 32))


def _sets(e: Exchange, kind: str) -> Iterator[tuple[str, bytes]]:
    message = e.message(kind)
    everyone = tuple(range(transcript.CLIENTS))
    without = tuple(index for index in everyone if index != e.index)
    few = tuple(sorted((e.index, without[0])))
    prefix = "masking-set" if kind == "MaskingSet" else "survivor-set"
    for name, members in {
        "empty": (),
        "without-me": without,
        "of-two": few,
        "out-of-order": tuple(reversed(everyone)),
        "with-one-twice": (0, *everyone),
        "beyond-the-roster": (*everyone, transcript.CLIENTS),
        "with-minus-one": (-1, *everyone),
    }.items():
        yield f"{prefix}-{name}", e.sign(change(message, members=members))


def _confirmations(e: Exchange) -> Iterator[tuple[str, bytes]]:
    request = e.message("Confirmations")
    assert isinstance(request, messages.Confirmations)
    decoded = {messages.peek(s, messages.Confirmation)[0].index: s for s in request.confirmations}
    own = decoded.pop(e.index)
    one, *others = decoded.values()
    other, _ = messages.peek(one, messages.Confirmation)
    by_name: dict[str, tuple[bytes, ...]] = {
        "no-confirmations": (),
        "one-confirmation": (one,),
        "one-confirmation-twice": (one, one),
        "ones-own-confirmation-and-another": (own, one),
        "confirmation-signed-by-the-aggregator": (e.sign(other), *others),
        "confirmation-beyond-the-roster": (e.sign(change(other, index=99)), *others),
        "confirmation-that-is-no-message": (b"", *others),
    }
    number = next(
        n
        for n, c in enumerate(e.shown.devices)
        if c.certificate.identity_key == messages.peek(one, messages.Confirmation)[1].signer
    )
    identity = e.shown.devices[number].identity
    differing = change(other, survivor_set_digest=b"u" * 32)
    by_name["confirmation-of-another-set"] = (e.sign(differing, identity), *others)
    for name, listed in by_name.items():
        yield name, e.sign(change(request, confirmations=listed))


def _too_early(e: Exchange) -> Iterator[tuple[str, bytes]]:
    yield "inbox-before-the-roster", e.down["Inbox"]


_BEFORE: list[tuple[str, Callable[[Exchange], Iterator[tuple[str, bytes]]]]] = [
    ("Roster", _rosters),
    ("Roster", _too_early),
    ("Inbox", _inboxes),
    ("MaskingSet", lambda e: _sets(e, "MaskingSet")),
    ("SurvivorSet", lambda e: _sets(e, "SurvivorSet")),
    ("Confirmations", _confirmations),
]


def make(record: Mapping[str, Any]) -> dict[str, Any]:
    """All named refusals of device 0 in this exchange."""
    exchange = Exchange(record)
    return {
        "transcript": "complete",
        "device": DEVICE,
        "negative": [
            {"name": name, "instead_of": kind, "signed": signed.hex()}
            | exchange.outcome(kind, signed)
            for kind, cases in _BEFORE
            for name, signed in cases(exchange)
        ],
    }
