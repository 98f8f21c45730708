"""A holder for secret bytes that does not print, compare, hash or pickle."""

from __future__ import annotations

from typing import NoReturn


class Secret:
    """Secret bytes with one owner and one use.

    ``reveal()`` is the only way to the bytes, so that each use can be found by search.
    Python cannot promise to erase memory; see ``threat_model.md``.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __repr__(self) -> str:
        return f"Secret(<{len(self._value)} bytes>)"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets do not compare; use hmac.compare_digest on their bytes")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets do not pickle")
