"""What an error says, and cases of what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from secagg.errors import RemoteProtocolError, SecaggError


class Case(NamedTuple):
    """A call that is refused, and what the error then says.

    ``error``: its class; None: the one that the test names for all its cases.
    """

    call: Callable[[], Any]
    reason: str
    expected: object = None
    found: object = None
    culprit: bytes | None = None
    error: type[SecaggError] | None = None


def said(error: SecaggError) -> tuple[str, object, object]:
    """(reason, expected, found), after a look at the form: a kebab-case reason and a sentence."""
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", error.reason), error.reason
    assert re.fullmatch(r"[A-Z0-9`].*[.]", error.message, re.DOTALL), error.message
    assert error.message != error.message.upper()
    assert str(error).startswith(f"{error.message} [{error.reason}]")
    return error.reason, error.expected, error.found


def refused(case: Case, error: type[SecaggError] = RemoteProtocolError) -> None:
    """The call of the case is refused as it says, by an error of that very class."""
    with pytest.raises(SecaggError) as caught:
        case.call()
    assert type(caught.value) is (case.error or error)
    assert said(caught.value) == (case.reason, case.expected, case.found)
    assert getattr(caught.value, "culprit", None) == case.culprit
