"""What a device knows of a release that it took part in, and the ledger must say.

The roster gave it the cohort, its size and its models; the later messages gave it both sets; the
manifest gives the noise that follows, and what the release may have cost. The number of the attempt
is in the context, which the record names.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from client_sdk.errors import LedgerRefusal
from client_sdk.ledger.log import Proven
from client_sdk.state.journal import SessionRecord
from dp.accounting.statements import PrivacyStatement, ReleaseFacts, guaranteed_variance, lines
from dp.errors import LedgerError
from dp.ledger.parsing import parse_release
from dp.ledger.records import RELEASE_VERSION, by_renyi, same_terms, statement_record
from secagg.context import context
from secagg.errors import SecaggError
from secagg.manifest import Manifest, manifest_digest
from secagg.messages import AdmittedModel

_MICRO = 1_000_000
_TOLERANCE = 2  # millionths: libm differs between platforms in the last bit


def check_release(proven: Proven, session: SessionRecord, manifest: Manifest) -> None:
    """A proven record says of the cohort what this device knows of it.

    Facts that an older software did not journal are not compared.

    Raises:
        LedgerRefusal: ``release-mismatch``.
    """
    expected: dict[str, object] = {}
    if session.cohort:
        expected |= {
            "version": RELEASE_VERSION,  # so it names no device by its identity
            "cohort": session.cohort.hex(),
            "cohort_size": session.cohort_size,
        }
    if session.roster_digest:
        expected["roster_digest"] = session.roster_digest.hex()
    if session.models:
        expected |= {
            "model_digests": [digest.hex() for _, digest in session.models],
            "model_versions": [version for version, _ in session.models],
        }
    if session.survivors:
        expected["noise_variance"] = str(_variance(manifest, facts_of(session)))
    proven.demand(expected)
    try:
        entry = parse_release(proven.record)
    except LedgerError as error:
        raise _mismatch(proven, "The record of the release does not parse.", str(error)) from error
    if session.roster_digest and entry.attempt is not None:
        ctx = context(
            task=session.task,
            cohort=session.cohort,
            attempt=entry.attempt,
            manifest_digest=manifest_digest(session.manifest),
            models=tuple(AdmittedModel(*model) for model in session.models),
            roster=session.roster_digest,
        )
        if ctx != session.ctx:
            raise _mismatch(
                proven, "The record names another attempt.", session.ctx.hex(), ctx.hex()
            )
    if session.survivors:
        _check_lines(proven, manifest, facts_of(session))
    if entry.release > manifest.budget.releases_max:
        raise _mismatch(
            proven,
            "The task has made more releases than it may.",
            f"at most {manifest.budget.releases_max}",
            entry.release,
        )


def facts_of(session: SessionRecord) -> ReleaseFacts:
    return ReleaseFacts(survivors=session.survivors, masking_set_size=session.masking_set_size)


def _variance(manifest: Manifest, facts: ReleaseFacts) -> int:
    return 0 if manifest.noise is None else guaranteed_variance(manifest, facts)


def _check_lines(proven: Proven, manifest: Manifest, facts: ReleaseFacts) -> None:
    """Each line of cost is one of the manifest's, and its epsilon one that can be.

    How many survived earlier cohorts is not this device's to know: the task cost at least what
    this release costs alone, and at most what as many releases at the fewest survivors do.
    """
    number = proven.record["release"]
    assert isinstance(number, int)  # noqa: S101  compared before
    try:
        renyi = by_renyi(proven.record)
        least, most = (lines(manifest, count, renyi=renyi) for count in ([facts], number))
    except SecaggError as error:
        raise _mismatch(proven, "The release cannot be accounted for.", str(error)) from error
    found = proven.record.get("lines")
    if not isinstance(found, list) or len(found) != len(least):
        raise _mismatch(proven, "The privacy statements are not the manifest's.", len(least), found)
    for line, low, high in zip(found, least, most, strict=True):
        if not isinstance(line, Mapping) or not _fits(line, manifest, low, high):
            raise _mismatch(
                proven,
                "A privacy statement is not the manifest's, or its epsilon is impossible.",
                {**_terms(low), "epsilon_micro": [_micro(low), _micro(high)]},
                line,
            )
    headline = max((told["epsilon_micro"] for told in found if not told["amplified"]), default=None)
    if proven.record.get("epsilon_micro") != headline:
        raise _mismatch(
            proven,
            "The headline is not the largest unamplified epsilon.",
            headline,
            proven.record.get("epsilon_micro"),
        )


def _fits(
    told: Mapping[str, object], manifest: Manifest, low: PrivacyStatement, high: PrivacyStatement
) -> bool:
    epsilon = told.get("epsilon_micro")
    return (
        type(epsilon) is int
        and _micro(low) - _TOLERANCE <= epsilon <= _micro(high) + _TOLERANCE
        and same_terms(told, manifest, low)
    )


def _terms(statement: PrivacyStatement) -> dict[str, object]:
    """The record of a statement without its epsilon, which may be infinite here."""
    record = statement_record(msgspec.structs.replace(statement, epsilon=0.0))
    del record["epsilon_micro"]
    return record


def _micro(statement: PrivacyStatement) -> float:
    return statement.epsilon * _MICRO


def _mismatch(
    proven: Proven, message: str, expected: object = None, found: object = None
) -> LedgerRefusal:
    return LedgerRefusal(
        "release-mismatch",
        message,
        expected=expected,
        found=found,
        remedy="Ask the operator; the evidence shows what its ledger says.",
        evidence=proven.evidence(),
        lasting=True,
    )
