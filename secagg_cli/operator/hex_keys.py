"""Public keys that a command line names in hex."""

from __future__ import annotations

import os

from secagg.limits import IDENTITY_KEY_BYTES
from secagg_cli.output import CommandError

_DIGITS = 2 * IDENTITY_KEY_BYTES
_SHOWN = 4_096  # the longest path


def hex_key(text: str, what: str, reason: str, remedy: str) -> bytes:
    """An Ed25519 key, 32 bytes. ``what``: it has, such as ``A device's key``.

    Raises:
        CommandError: ``reason``, with what was found.
    """
    digits = text.strip()
    wrong = next((each for each in digits if each not in "0123456789abcdefABCDEF"), None)
    if wrong is None and len(digits) == _DIGITS:
        return bytes.fromhex(digits)
    shown = digits if len(digits) <= _SHOWN else f"{digits[:_SHOWN]}..."
    if not digits:
        found = "nothing"
    elif os.path.lexists(text):
        found = f"the name of a file, {shown}"
    elif wrong is None:
        found = f"{len(digits)} hex digits"
    else:
        found = f"{shown!r}, in which {wrong!r} is not a digit"
    raise CommandError(reason, f"{what} has {_DIGITS} hex digits; this is {found}.", remedy=remedy)
