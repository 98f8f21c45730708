"""Everything that was ever said elsewhere, replayed to everyone at every step.

Elsewhere: an earlier cohort of the same task, another task of the same partner, another tenant with
a partner and devices of its own. The exchange must end as if nothing had come.
"""

from __future__ import annotations

import numpy as np
import pytest

from secagg import messages, server
from secagg.client import checks
from secagg.messages import KINDS
from secagg.simulation import CohortResult, Hooks, SimulatedTask, make_task, run_cohort

CLIENTS = 4  # k = 3, no corrupt device: t = 2


def task(seed: int = 0, length: int = CLIENTS) -> SimulatedTask:
    return make_task(CLIENTS, length, seed=seed, slice_length=4, survivors_min=3)


def one_hot(length: int = CLIENTS) -> list[np.ndarray]:
    return [np.eye(CLIENTS, length, dtype=np.int64)[number] for number in range(CLIENTS)]


def recorded(shown: SimulatedTask, cohort: bytes) -> tuple[list[bytes], list[bytes]]:
    """(to the aggregator, to devices) of a whole exchange."""
    up: list[bytes] = []
    down: list[bytes] = []

    def keep_up(_: int, message: bytes) -> list[bytes]:
        up.append(message)
        return [message]

    def keep_down(_: int, message: bytes) -> list[bytes]:
        down.append(message)
        return [message]

    hooks = Hooks(upward=keep_up, downward=keep_down)
    vectors = one_hot(shown.manifest.data_length)
    # Another seed, hence other adverts: each serves one roster only.
    run_cohort(shown, vectors, cohort=cohort, hooks=hooks, seed=1)
    return up, down


def elsewhere(name: str) -> tuple[list[bytes], list[bytes]]:
    match name:
        case "an-earlier-cohort":
            return recorded(task(), b"1" * 32)
        case "another-task":  # the same devices and partner under another manifest
            return recorded(task(length=CLIENTS + 1), b"2" * 32)
    return recorded(task(seed=99), b"2" * 32)


def flooded(up: list[bytes], down: list[bytes]) -> CohortResult:
    """Before each genuine message comes everything that was said elsewhere."""
    hooks = Hooks(
        upward=lambda _, message: [*up, message], downward=lambda _, message: [*down, message]
    )
    return run_cohort(task(), one_hot(), cohort=b"2" * 32, hooks=hooks)


@pytest.mark.parametrize("name", ["an-earlier-cohort", "another-task", "another-tenant"])
def test_messages_from_elsewhere_change_nothing(name: str) -> None:
    up, down = elsewhere(name)
    result = flooded(up, down)
    assert isinstance(result.state, server.Released)
    assert result.survivors == tuple(range(CLIENTS))
    assert result.total is not None
    assert result.total.tolist() == [1] * CLIENTS
    assert not result.ended.culprits
    assert {reason for _, reason in result.refused} <= {
        "signature-invalid",
        "signer-unexpected",
    }


def test_in_a_build_without_contexts_an_earlier_cohort_disturbs_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = messages.signature_input
    monkeypatch.setattr(
        messages, "signature_input", lambda kind, ctx, frame: genuine(kind, b"", frame)
    )
    monkeypatch.setattr(checks, "check_context", lambda *_: None)
    up, down = elsewhere("an-earlier-cohort")
    result = flooded(up, [m for m in down if not isinstance(_kind(m), messages.Roster)])
    assert not isinstance(result.state, server.Released)


def _kind(signed: bytes) -> messages.Message:
    return messages.peek(signed, *KINDS)[0]
