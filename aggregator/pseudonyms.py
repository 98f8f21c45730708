"""What logs and pages call devices and operators: names of a day that this service alone can make.

The ledger names a device anew in every cohort, so that nobody follows it. The service knows its
devices; but its log goes to other places and lasts, so it holds no key of a device, and a name
in it holds for one day (UTC). ``secagg device list`` shows the operator keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from secagg.hashing import derive, encode_parts
from secagg.secret import Secret

_DAY_S = 86_400
_DIGITS = 16


class Pseudonyms:
    """``key``: the service's task key, so replicas make the same names. ``clock``: Unix seconds."""

    def __init__(self, key: Secret, clock: Callable[[], float]) -> None:
        self._key = derive(key.reveal(), "log names")
        self._clock = clock

    def device(self, identity: bytes) -> str:
        """Of a device with this identity key (32 bytes), today: 16 hex digits."""
        today = int(self._clock() // _DAY_S)
        return self._name("device", identity, today.to_bytes(8, "little"))

    def operator(self, token: str) -> str:
        """Of whoever shows this token, right or wrong; it tells nothing of the token."""
        return self._name("operator", token.encode("utf-8", "surrogateescape"))

    def _name(self, what: str, *parts: bytes) -> str:
        data = encode_parts(f"log name {what}", *parts)
        return hmac.new(self._key, data, "sha256").hexdigest()[:_DIGITS]
