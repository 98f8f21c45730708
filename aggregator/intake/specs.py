"""A task's specification as a body, with all that is wrong with its fields told at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec

from aggregator.errors import Kind, Refusal
from aggregator.intake import bodies
from dp.contracts import TaskSpec
from dp.contracts.wrong_fields import WRONG_MAX, WrongField, wrong_fields
from secagg.errors import ConfigurationError

_REMEDY = "`secagg task template` writes a file with every field, its unit, range and meaning."


def parse_spec(body: bytes) -> TaskSpec:
    """
    Raises:
        Refusal: as ``bodies.parse_json``, with every field that is wrong.
    """
    try:
        return bodies.parse_json(body, TaskSpec)
    except Refusal as error:
        wrong = _wrong(body)
        if error.reason != "body-malformed" or not wrong:
            raise
        raise Refusal(Kind.MALFORMED, error.reason, _told(wrong), remedy=_remedy(wrong)) from error


@contextlib.contextmanager
def all_told(body: bytes) -> Iterator[None]:
    """What the contracts refuse is the first thing that they meet; name all fields that are out of
    range with it.

    Raises:
        ConfigurationError: with the reason of the first.
    """
    try:
        yield
    except ConfigurationError as error:
        wrong = _wrong(body)
        if len(wrong) < 2:
            raise
        raise ConfigurationError(
            error.reason, f"{error.detail} {_told(wrong)}", remedy=error.remedy or _remedy(wrong)
        ) from error


def _wrong(body: bytes) -> tuple[WrongField, ...]:
    try:
        spec = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return ()
    return wrong_fields(spec)


def _told(wrong: Sequence[WrongField]) -> str:
    count = f"{len(wrong)} fields are" if len(wrong) > 1 else "One field is"
    if len(wrong) == WRONG_MAX:
        count = f"At least {count}"
    return "\n- ".join([f"{count} wrong:", *(field.text for field in wrong)])


def _remedy(wrong: Sequence[WrongField]) -> str:
    meant = " or ".join(name for field in wrong for name in field.meant)
    return f"Is {meant} meant? {_REMEDY}" if meant else _REMEDY
