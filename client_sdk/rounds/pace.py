"""When a device comes back for more."""

from __future__ import annotations

import math

from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.participant import Outcome

_TOO_OLD = ("model-superseded", "advert-stale")  # of the model: there is a newer one to train from
_OWN_WISH = ("paused", "stopped", "not-now", "other-task")  # of the app, not the cohort's trouble


class Pace:
    """When a device comes back: at once after one abort, then ever later; never before news.

    ``after_version``: wait for a newer model than this; from ``until_s`` on the same will do.
    """

    def __init__(self, device: RunningDevice) -> None:
        self._device = device
        self._aborts = 0
        self.after_version: int | None = None
        self.until_s = math.inf

    def wait_for_newer(self, version: int) -> None:
        self.after_version, self.until_s = version, math.inf

    async def after(self, outcome: Outcome) -> None:
        self.wait_for_newer(outcome.model_version)
        if outcome.reason is None:
            self._aborts = 0
        elif outcome.reason == "left-out":  # the cohort goes on without this device
            self.until_s = outcome.ends_by_s
        elif outcome.reason in _OWN_WISH:
            self.after_version = None
        elif outcome.reason not in _TOO_OLD:
            self.after_version = None
            if self._aborts:
                settings = self._device.settings
                wait_s = settings.abort_wait_first_s * 2 ** min(self._aborts - 1, 20)
                await self._device.sleep(min(wait_s, settings.abort_wait_max_s))
            self._aborts += 1
