"""What a device gives in any stretch of time: bytes, training time, epsilon.

Each is refused before it is spent, with the time at which it will be possible again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.errors import PolicyRefusal
from client_sdk.network.server_time import shown_time
from client_sdk.settings_fields import check_fields
from dp.accounting.budget import Unit
from dp.accounting.figures import limit_shown, upper
from dp.transfer_sizes import download_size, messages_size, needs_model, upload_size
from secagg.manifest import Manifest

if TYPE_CHECKING:
    from client_sdk.accounts.usage import Usage

OTHER_BYTES = 256 << 10  # of one round beside these: heads of HTTP, offers, files of the ledger


@dataclass(frozen=True)
class PeriodLimits:
    """Most that a device gives in any stretch of ``period_s``; None: no limit.

    Attributes:
        period_s: seconds, 30 days by default. What was used counts until it is that long ago, by
            the aggregator's time as far as the device believes it, to a 64th of the period; so no
            period begins anew, and a clock that is set alone grants nothing.
        max_bytes: sent and received by this state folder in all tasks, heads of HTTP with it; not
            counted is what TCP and TLS add.
        max_training_s: seconds in calls of the contributor, in all tasks.
        max_epsilon: what all tasks cost each unit that the policy counts, unamplified, of the same
            data, by the account. A charge that is older than the first look under a limit counts
            from that look on.
    """

    period_s: float = 30 * 86_400.0
    max_bytes: int | None = None
    max_training_s: float | None = None
    max_epsilon: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not 60.0 <= self.period_s <= 366 * 86_400.0:
            raise ValueError(f"period_s is {self.period_s:g}, not from 60 s to 366 days")

    def admit_work(self, manifest: Manifest, usage: Usage) -> None:
        """Return if one more round fits: its model, vector and messages, and its training.

        Raises:
            PolicyRefusal: ``bytes-of-period``, ``training-of-period``.
        """
        if self.max_bytes is not None:
            model = download_size(manifest) if needs_model(manifest) else 0
            messages = sum(messages_size(manifest))
            usage.demand_bytes(model + upload_size(manifest) + messages + OTHER_BYTES)
        if self.max_training_s is not None:
            usage.demand_training(manifest.task)

    def admit_epsilon(
        self,
        manifest: Manifest,
        units: Iterable[tuple[Unit, bool]],
        account: DeviceAccount,
        usage: Usage,
    ) -> None:
        """Return if one more charge fits.

        Args:
            units: those that count; and whether a task that makes no statement about one is charged
                what can be derived.

        Raises:
            PolicyRefusal: ``epsilon-of-period``.
        """
        most = self.max_epsilon
        if most is None:
            return
        usage.note_charges(account.counted_cohorts())
        dated = sorted(usage.charged().items(), key=lambda each: each[1])
        for unit, derived in units:

            def cost(forgotten: int, unit: Unit = unit, derived: bool = derived) -> float:
                """Of the charges but so many, the oldest, and the next one."""
                recent = frozenset(cohort for cohort, _ in dated[forgotten:])
                total = account.after_of(manifest, unit, recent)
                return total.bounded if derived else total.stated or 0.0

            found = cost(0)
            if found > most:
                fits = first_of(len(dated), lambda count: cost(count) <= most)
                again = None if fits is None else dated[fits - 1][1] + self.period_s
                raise period_refusal(
                    "epsilon-of-period",
                    f"One more round would overdraw what a period may cost one {unit}.",
                    expected=f"epsilon <= {limit_shown(most)}, unamplified, in "
                    f"{span(self.period_s)}",
                    found=upper(found),
                    again_at=again,
                    raised="max_epsilon",
                )


def first_of(count: int, holds: Callable[[int], bool]) -> int | None:
    """The first of 1 to ``count`` for which it holds, and for all after it; None if none."""
    low, high = 0, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high if high <= count else None


def period_refusal(
    reason: str,
    message: str,
    *,
    expected: object,
    found: object,
    again_at: float | None,
    raised: str,
) -> PolicyRefusal:
    """``again_at``: Unix seconds from which it fits, if nothing else is used; None: never.

    ``raised``: the limit that admits it now.
    """
    when = (
        "It never fits: one round alone is more."
        if again_at is None
        else f"It will fit at {shown_time(math.ceil(again_at))}: run again then."
    )
    return PolicyRefusal(
        reason,
        message,
        expected=expected,
        found=found,
        remedy=f"{when} Or raise {raised} of per_period in this app's policy.",
        again_at=again_at,
    )


def span(seconds: float) -> str:
    """A length of time as a person says it."""
    for unit, length_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.3g} {unit}"
    return f"{seconds:.3g} s"
