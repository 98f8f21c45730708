"""Every field of the settings an app gives is looked at when they are made."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from client_sdk import (
    ParticipantSettings,
    PeriodLimits,
    PrivacyPolicy,
    RunningLoopError,
    TransportSettings,
    repoint_bundles,
)

SETTINGS = (PrivacyPolicy, PeriodLimits, ParticipantSettings, TransportSettings)
NUMBERS = [
    (settings, field.name)
    for settings in SETTINGS
    for field in dataclasses.fields(settings)
    if str(field.type).removesuffix(" | None") in ("int", "float")
]
SETS = [
    field.name for field in dataclasses.fields(PrivacyPolicy) if "frozenset[" in str(field.type)
]


@pytest.mark.parametrize(("settings", "name"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, -1, "5", True, [5]])
def test_a_number_is_a_number_of_at_least_0(settings: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        settings(**{name: value})


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("value", ["distributed-and-local", b"x" * 32, [5], 5, {"a": 1}])
def test_a_set_is_no_text_and_holds_its_kind(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        PrivacyPolicy(**{name: value})


def test_a_set_may_be_given_as_a_list() -> None:
    policy = PrivacyPolicy(allowed_models=["a"], allowed_fingerprints=[bytes(32)])  # type: ignore[arg-type]
    assert policy.allowed_models == {"a"}
    assert policy.allowed_fingerprints == {bytes(32)}


@pytest.mark.parametrize(
    "changes",
    [
        {"allowed_fingerprints": {"ab" * 32}},
        {"allowed_fingerprints": {bytes(31)}},
        {"per_period": {"max_bytes": 5}},
        {"may_train": True},
    ],
)
def test_what_would_fail_in_a_run_is_refused_before(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        PrivacyPolicy(**changes)


async def test_bundles_are_not_moved_inside_an_event_loop(tmp_path: Path) -> None:
    with pytest.raises(RunningLoopError, match="repoint_bundles"):
        repoint_bundles([], "http://127.0.0.1:9")
