"""Where the devices of charged cohorts were lost, as far as a ledger tells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dp.report.data import Lost, ReleaseRow

_BEFORE = (
    "Out before the masking set was fixed: keys not shared or not checked in time, refused or "
    "excluded"
)
_AFTER = "In the masking set, and its vector did not come in time or did not count"
_UNTOLD = "Not in the sum, at a step that the record does not tell"


def losses(releases: Sequence[ReleaseRow]) -> tuple[Lost, ...]:
    """Of the released cohorts by step, then the charged ones by cause and fault; only what there
    was."""
    released = [row for row in releases if row.outcome == "released"]
    told = [(row, row.masking_set_size) for row in released if row.masking_set_size is not None]
    fixed = sum(size for _, size in told)
    rows = [
        Lost(
            text=_BEFORE,
            devices=sum(row.cohort_size for row, _ in told) - fixed,
            of=sum(row.cohort_size for row, _ in told),
        ),
        Lost(text=_AFTER, devices=fixed - sum(row.survivors for row, _ in told), of=fixed),
    ]
    untold = [row for row in released if row.masking_set_size is None]
    rows.append(
        Lost(
            text=_UNTOLD,
            devices=sum(row.cohort_size - row.survivors for row in untold),
            of=sum(row.cohort_size for row in untold),
        )
    )
    charged: dict[tuple[str, str], list[ReleaseRow]] = defaultdict(list)
    for row in releases:
        if row.outcome == "charged":
            charged[row.cause or "cause not recorded", row.fault or "not recorded"].append(row)
    for (cause, fault), found in sorted(charged.items()):
        rows.append(
            Lost(
                text=f"Charged without a sum: {cause}, fault: {fault}",
                devices=None,
                of=sum(row.cohort_size for row in found),
                cohorts=len(found),
            )
        )
    return tuple(row for row in rows if row.devices or row.cohorts)
