"""What a test reads of the service's log."""

from __future__ import annotations

import json
from typing import Any

import pytest


def lines(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Every line since the last call; each is JSON, or this fails."""
    return [json.loads(line) for line in captured.readouterr().err.splitlines()]


def of(event: str, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in told if line["event"] == event]
