"""Removable noise in the service: exactly what the survivors need is left in a released sum."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import stats

from dp.accounting.statements import ReleaseFacts, guaranteed_variance
from dp.contracts import BudgetSpec, CohortSpec, SegmentSpec
from dp.ledger.verification import verify_ledger
from dp.noise.removable import kept_share, removable_part, remove_parts, share_levels
from secagg import client
from secagg.context import removed_levels
from secagg.ring import add_into
from tests.kits.service import Device, current_sum, run, served, spec

LENGTH = 70_000  # more than one opening slice


def noisy_task():
    return spec(
        segments=(SegmentSpec(name="count", length=LENGTH, clip=1.0),),
        cohort=CohortSpec(size_min=6, size_max=6, survivors_min=4),
        device_noise_multiplier=2.0,
        budget=BudgetSpec(max_epsilon=None, releases_max=3),
    )


class Recorded(Device):
    """Remembers what it sent before masking, and the seeds of its noise."""

    async def feed(self, event: client.Event) -> None:
        if isinstance(event, client.VectorReady):
            self.lanes = event.vector.copy()
        await super().feed(event)

    async def perform(self, effect: client.Effect) -> None:
        if isinstance(effect, client.ProvideVector):
            self.effect = effect
        await super().perform(effect)


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_released_sum_is_the_vectors_without_the_parts_that_nobody_needs(tmp_path, lost):
    async with served(tmp_path, noisy_task()) as server:
        fleet = [Recorded(server, number, np.zeros(LENGTH)) for number in range(6)]
        for device in fleet[:lost]:
            device.stop_before = "header"
        await run(fleet)
        (release,) = (await server.view())["releases"]
        assert release["outcome"] == "released"
        assert release["survivors"] == 6 - lost
        released = await current_sum(server)
        folder = server.settings.data_dir / "ledger"
        audit = verify_ledger(
            lambda path: (folder / path).read_bytes() if (folder / path).is_file() else None,
            server.service.ledger.verifier,
        )
        assert audit.verified, audit.problems
        (recorded,) = audit.tasks[0].releases

    manifest = fleet[-1].config.manifest
    noise, rules, bits = manifest.noise, manifest.cohort, manifest.encoding.ring_bits
    assert noise.removable_drops == (1, 2)
    # Bit for bit: the digest in the ledger is that of the vectors less the opened parts.
    survivors = fleet[lost:]
    expected = np.zeros_like(survivors[0].lanes)
    for device in survivors:
        add_into(expected, device.lanes, bits)
    levels = removed_levels(noise.removable_drops, 6, len(survivors))
    assert len(levels) == 2 - lost
    parts = [
        removable_part(manifest, 6, level, device.effect.noise_seeds[level], device.effect.ctx)
        for device in survivors
        for level in levels
    ]
    remove_parts(expected, parts, bits, 0, len(expected))
    assert hashlib.sha256(expected.tobytes()).digest() == recorded.entry.sum_digest
    # And what is left has the variance that is accounted for, at significance 1e-9.
    share = kept_share(noise, rules, 6, len(survivors))
    assert share == share_levels(noise, rules, 6)[lost]
    energy = float((released.astype(np.float64) ** 2).sum()) * manifest.segments[0].scale ** 2
    assert 5e-10 < stats.chi2.sf(energy / (share * len(survivors)), LENGTH) < 1 - 5e-10
    facts = ReleaseFacts(survivors=len(survivors), masking_set_size=6)
    assert recorded.guaranteed_variance == guaranteed_variance(manifest, facts)
    assert recorded.guaranteed_variance >= noise.share_variance * noise.honest_min
