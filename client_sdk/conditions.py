"""Under which conditions a device trains: what the app can tell of it, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

Holds = Callable[[], bool]


@dataclass(frozen=True)
class Conditions:
    """What must hold while a device trains, for ``PrivacyPolicy(may_train=Conditions(...))``.

    Each is a function of the app's, since every platform has its own way to say so. It is called in
    the event loop's thread about once a second and returns at once; what it raises ends the run.
    None: not asked for.

    Attributes:
        charging: whether the device has mains power, or enough charge.
        unmetered: whether the network costs nothing.
        idle: whether nobody uses the device.
        cool: whether the device is not too warm.
    """

    charging: Holds | None = None
    unmetered: Holds | None = None
    idle: Holds | None = None
    cool: Holds | None = None

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of those that do not hold now."""
        asked = {each.name: getattr(self, each.name) for each in fields(self)}
        return tuple(name for name, holds in asked.items() if holds is not None and not holds())

    def __call__(self) -> bool:
        """Whether all hold now."""
        return not self.missed
