"""What an error says, for tests of refusals."""

from __future__ import annotations

import re

from secagg.errors import SecaggError


def said(error: SecaggError) -> tuple[str, object, object]:
    """(reason, expected, found), after a look at the form: a kebab-case reason and a sentence."""
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", error.reason), error.reason
    assert re.fullmatch(r"[A-Z0-9`].*[.]", error.message, re.DOTALL), error.message
    assert error.message != error.message.upper()
    assert str(error).startswith(f"{error.message} [{error.reason}]")
    return error.reason, error.expected, error.found
