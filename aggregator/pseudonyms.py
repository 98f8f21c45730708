"""Names of devices for logs and pages: the same on every replica, and nobody else can make them."""

from __future__ import annotations

import hashlib
import hmac

from aggregator.core import Core


def pseudonym(core: Core, identity: str) -> str:
    """Of a device's identity key (hex): 16 hex digits, keyed by the task key."""
    key = core.keys.task.reveal()
    named = hmac.digest(key, b"secagg/pseudonym\0" + bytes.fromhex(identity), hashlib.sha256)
    return named.hex()[:16]
