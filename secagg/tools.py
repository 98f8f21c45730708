"""What a protocol machine may use that is not a function of its events."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from secagg import sealing


@dataclass(frozen=True)
class Tools:
    """Randomness, injected so that the same seed replays the same run.

    ``random_bytes(count)`` returns that many secret, unpredictable bytes.
    ``seal(public_key, info, plaintext)`` is HPKE base mode with the protocol's suite
    (``secagg.sealing.hpke_seal``). It draws its own randomness inside the library, which is why it
    is injected as well.
    """

    random_bytes: Callable[[int], bytes]
    seal: Callable[[bytes, bytes, bytes], bytes]


def system_tools() -> Tools:
    """Tools for real use: the operating system's entropy and the real HPKE."""
    return Tools(random_bytes=os.urandom, seal=sealing.hpke_seal)
