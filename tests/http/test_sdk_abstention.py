"""A device that abstains sends zero and its noise, and the round goes on as if it had not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from client_sdk import payload
from client_sdk.payload import takes_part
from dp.contracts import BudgetSpec
from tests.kits.tasks import built, seeded, statistics
from tests.kits.world import TASK, OneHot, World, plain_spec

DEVICES = 4


@pytest.mark.parametrize("abstains", [False, True])
async def test_the_coin_decides_what_is_encoded_and_nobody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstains: bool
) -> None:
    spec = plain_spec(
        DEVICES,
        device_noise_multiplier=8.0,
        participation_rate=0.5,
        budget=BudgetSpec(max_epsilon=None, releases_max=4),
    )
    encoded: list[float] = []
    genuine = payload.encode

    def encode(manifest, values, **drawn):
        encoded.extend(float(np.abs(value).sum()) for value in values.values())
        return genuine(manifest, values, **drawn)

    monkeypatch.setattr(payload, "encode", encode)
    monkeypatch.setattr(payload, "takes_part", lambda manifest, draw: not abstains)
    async with World(tmp_path, spec) as world:

        async def run(number: int) -> list[str]:
            events = world.device(f"d{number}").participate(OneHot(number), task=TASK, rounds=1)
            return [event.kind async for event in events]

        told = await asyncio.gather(*(run(number) for number in range(DEVICES)))
        assert encoded == [0.0 if abstains else 1.0] * DEVICES
        assert {tuple(kinds)[-1] for kinds in told} == {"released"}
        audit = world.audit()
        assert (audit.verified, audit.releases) == (True, 1)


def test_the_coin_falls_as_often_as_the_manifest_says() -> None:
    """4,000 coins; five standard deviations."""
    limits = BudgetSpec(max_epsilon=None)
    terms = {"device_noise_multiplier": 4.0, "budget": limits}
    shown = built(statistics(("x", 4, 1.0), participation_rate=0.3, **terms))
    draw = seeded(11)
    count = sum(takes_part(shown, draw) for _ in range(4000))
    assert abs(count - 1200) <= 5 * (4000 * 0.3 * 0.7) ** 0.5
    everyone = built(statistics(("x", 4, 1.0), **terms))
    assert all(takes_part(everyone, draw) for _ in range(100))
