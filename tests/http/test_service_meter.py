"""The service measures the noise in every opened sum, and adopts none that shows too little."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dp.contracts import BudgetSpec, SegmentSpec
from dp.encoding import encode
from dp.ledger.verification import verify_ledger
from secagg import client
from tests.kits.service import Device, run, served, spec

LENGTH = 1 << 15


def noisy_task():
    """Four devices, one of them counted on to add no noise."""
    return spec(
        segments=(SegmentSpec(name="count", length=LENGTH, clip=1.0),),
        device_noise_multiplier=2.0,
        budget=BudgetSpec(max_epsilon=None, releases_max=3),
    )


class Noiseless(Device):
    """Runs the protocol faithfully and leaves its share of noise out."""

    async def perform(self, effect: client.Effect) -> None:
        if not isinstance(effect, client.ProvideVector):
            return await super().perform(effect)
        manifest = self.config.manifest
        silent = msgspec.structs.replace(
            manifest, noise=msgspec.structs.replace(manifest.noise, share_variance=1)
        )
        lanes = encode(
            silent,
            {"count": self.value},
            rotation_seed=effect.ctx,
            random_bytes=self.tools.random_bytes,
            masking_set_size=effect.masking_set_size,
            noise_seeds=effect.noise_seeds,
        )
        return await self.feed(client.VectorReady(lanes))


async def audited(server):
    await server.view()
    folder = server.settings.data_dir / "ledger"
    result = verify_ledger(
        lambda path: (folder / path).read_bytes() if (folder / path).is_file() else None,
        server.service.ledger.verifier,
    )
    assert result.verified, result.problems
    return result.tasks[0].releases


@pytest.mark.parametrize("silent", [0, 1])
async def test_a_released_sum_is_recorded_with_the_noise_measured_in_it(tmp_path, silent):
    async with served(tmp_path, noisy_task()) as server:
        kinds = [Noiseless] * silent + [Device] * (4 - silent)
        await run([kind(server, n, np.zeros(LENGTH)) for n, kind in enumerate(kinds)])
        (release,) = (await server.view())["releases"]
        assert release["outcome"] == "released"
        (recorded,) = await audited(server)
        low, high = recorded.entry.measured_variance
        share = recorded.guaranteed_variance // 3
        # Four honest shares, or three: what is taken off a silent device's does not count.
        assert low <= (4 - silent) * share <= high
        assert 0.8 * high < (4 - silent) * share < 1.25 * low


async def test_a_sum_without_the_promised_noise_is_charged_and_not_adopted(tmp_path):
    async with served(tmp_path, noisy_task()) as server:
        kinds = [Noiseless, Noiseless, Device, Device]
        await run([kind(server, n, np.zeros(LENGTH)) for n, kind in enumerate(kinds)])
        view = await server.until(lambda view: view["releases"])
        (release,) = view["releases"]
        assert (release["outcome"], release["reason"]) == ("charged", "noise-measured-missing")
        assert release["noise"]["high"] < release["noise"]["guaranteed"]
        assert view["version"] == 0
        assert release["epsilon"] > 0
        (recorded,) = await audited(server)
        assert recorded.entry.outcome == "charged"
        assert recorded.entry.measured_variance[1] < 3 * recorded.guaranteed_variance // 2
