"""What a participant tells the app while it takes part: small, printable, free of secrets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

EventKind = Literal[
    "account",  # what the account counts: this folder alone, or a data set; once a folder
    "recovered",  # charges of a task that the ledger lists for this device were written down
    "resumed",  # a session of an earlier process goes on (detail: phase; failed, if zeros stand in)
    "checked-in",  # the offer passed the policy; the model is on disk (detail: no_finite_total, the
    # tasks that leave no finite total, this one or earlier ones, of an example or of a unit that
    # the policy counts; others, epsilon of the other tasks)
    "delta-refused",  # a model's delta was wrong; the whole model is fetched (detail: reason)
    "progress",  # of training, a download or an upload, one a second at most, the last at its end
    # (detail: what, done, total, seconds_left; of training it stays here: it is as secret as the
    # batch)
    "training",  # the contributor starts (detail: part and period, where examples serve in turn)
    "trained",  # its contribution is journalled (detail: reused, failed, seconds; failure, row,
    # tensor, of a training that gave nothing of the examples)
    "examples-left-out",  # some counted as zero (detail: examples, reasons, first); stays here
    "examples-cut",  # some counted, but not whole (detail: examples, first); stays here
    "units-unprotected",  # examples name a person or document, and the task protects each example
    # by itself (detail: examples); stays here
    "values-shortened",  # a segment of a task without training is longer than its clip, and is sent
    # as long as that (detail: segment, norm, clip); stays here
    "reported",  # the advert is accepted
    "roster",  # the cohort has closed and this device is in it
    "shared",  # deals are sent
    "checked",  # the inbox is verified and answered
    "masking",  # the masking set is known; budget debited; about to encode and mask
    "uploading",  # the masked vector is journalled and goes out
    "uploaded",  # its last byte is acknowledged
    "confirmed",  # the survivor set is signed
    "unmasked",  # shares are revealed
    "released",  # the release is in the ledger, proof verified
    "aborted",  # this session ended without a release (detail: also failure, row, tensor)
    "refused",  # this device refuses the task under its policy (detail: also failure, row, tensor)
    "waiting",  # the task is paused, the next model is awaited, the server is out of reach, or a
    # cohort of another task counts on this device (other-task; detail: pending, seconds at most)
    "paused",  # the app has paused the run, and nothing goes on any more
    "continued",  # the app has lifted its pause
    "stopped",  # the app has stopped the run (detail: pending, whether a session is unfinished)
    "finished",  # the task is over
]


@dataclass(frozen=True)
class Event:
    """One step of a participation.

    ``session``: hex name of the session at the aggregator, None outside of one.
    ``detail``: numbers and short texts only, never payloads or secrets.
    """

    kind: EventKind
    task: str
    session: str | None = None
    detail: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON with the keys ``event``, ``task``, ``session`` and the details."""
        return json.dumps(
            {"event": self.kind, "task": self.task, "session": self.session, **self.detail}
        )


OnEvent = Callable[[Event], None]
