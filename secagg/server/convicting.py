"""From what the machine found to evidence: what the accused signed, taken from the cohort's log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from secagg.context import advert_digest
from secagg.errors import RemoteProtocolError
from secagg.evidence import (
    DEAL_SIGNATURE,
    SEAL_INVALID,
    TRANSFERABLE,
    UNMASK_SHARE,
    Evidence,
    encode_evidence,
)
from secagg.messages import Deals, Unmask, peek
from secagg.server.states import Finding, State


def wanted(findings: Sequence[Finding]) -> frozenset[int]:
    """Roster indices of the devices whose messages :func:`gather_evidence` needs."""
    return frozenset(
        index
        for finding in findings
        for index in (finding.device, finding.other if finding.kind == UNMASK_SHARE else -1)
        if index >= 0
    )


def gather_evidence(
    state: State, manifest: bytes, adverts: Iterable[bytes], received: Iterable[tuple[int, bytes]]
) -> list[tuple[Finding, bytes]]:
    """Evidence for each device that was found out, once each.

    A signed answer to unmask holds a share of each of its neighbours' secrets. So fewer answers
    are kept than open one of them.

    Args:
        manifest: as signed.
        adverts: all signed adverts of the cohort, in any order.
        received: (roster index, signed message) of at least the ``wanted`` devices; what the
            machine did not obey must not be among them.
    """
    facts = state.facts
    by_digest = {advert_digest(signed): signed for signed in adverts}
    deals: dict[int, bytes] = {}
    answers: dict[int, bytes] = {}
    needed = wanted(state.findings)
    for index, signed in received:
        if index not in needed:
            continue
        try:
            kept, _ = peek(signed, Deals, Unmask)
        except RemoteProtocolError:
            continue  # another kind
        (deals if isinstance(kept, Deals) else answers)[index] = signed
    gathered: dict[int, tuple[Finding, bytes]] = {}
    answers_left = facts.threshold - 1
    for finding in state.findings:
        answered = finding.kind == UNMASK_SHARE
        message = (answers if answered else deals).get(finding.device)
        if message is None or finding.device in gathered or (answered and not answers_left):
            continue
        answers_left -= answered
        other = b""
        if answered:
            other = deals[finding.other]
        elif finding.kind == SEAL_INVALID:
            other = by_digest[facts.roster[finding.other].advert_digest]
        evidence = Evidence(
            kind=finding.kind,
            manifest=manifest,
            cohort=facts.cohort,
            attempt=facts.attempt,
            models=facts.models,
            entries=facts.roster,
            device=finding.device,
            advert=by_digest[facts.roster[finding.device].advert_digest],
            message=message,
            other=finding.other,
            other_message=other,
            secret=finding.secret,
            shares=finding.shares if finding.kind in TRANSFERABLE - {DEAL_SIGNATURE} else (),
        )
        gathered[finding.device] = finding, encode_evidence(evidence)
    return list(gathered.values())
