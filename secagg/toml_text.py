"""Values as a TOML file writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def toml_value(value: object) -> str:
    """Text, numbers, truth, lists of them, and tables of them in one line.

    Raises:
        TypeError: there is no such value in TOML.
    """
    if isinstance(value, Mapping):
        inside = ", ".join(f"{json.dumps(str(k))} = {toml_value(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str | bool | int | float):
        return json.dumps(value)
    raise TypeError(f"TOML has no {type(value).__name__}")
