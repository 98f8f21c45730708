"""The demo's schedule follows its rounds: which parts, what an example costs, what a sum holds."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from dp.accounting.statements import headline, lines
from dp.contracts import TaskSpec
from dp.schedule import participations, period_of
from secagg.manifest import Manifest
from secagg_cli.demo.choice import resolve
from secagg_cli.demo.kills import plan_kills
from secagg_cli.demo.spec import MAX_EPSILON, DemoOptions, device_limit, task_spec
from secagg_cli.models.corpus import CLIENTS_MAX, load_clients
from secagg_cli.models.presets import PASS, period_for
from tests.kits.tasks import built
from tests.kits.tiny_training import tiny

DEFAULT_PROMISE = 3.3  # epsilon at delta 1e-5, no amplification


@cache
def _model() -> Any:
    return tiny()[0]


def spec_of(name: str | None = None, **changes: Any) -> TaskSpec:
    options = DemoOptions(
        **{"model": "tiny", "clients": 6, "rounds": 4, "drop": 0.3} | changes,
        device_noise=0.0,
        folder=None,
    )
    plan, _ = plan_kills(options.clients, options.drop)
    return task_spec(resolve(name, None, options), plan, _model())


def manifest_of(name: str | None = None, **changes: Any) -> Manifest:
    return built(spec_of(name, **changes))


@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_the_default_uses_each_example_once_and_costs_what_it_promises(model: str) -> None:
    manifest = manifest_of(model=model)
    privacy = manifest.example_privacy
    assert privacy is not None
    assert (privacy.scheduled, privacy.sampling_rate) == (4, 1.0)
    stated = lines(manifest, 4)
    assert not any(line.amplified for line in stated)
    cost = headline(stated)
    assert cost is not None
    assert 0.8 * DEFAULT_PROMISE < cost <= DEFAULT_PROMISE
    assert device_limit(spec_of(model=model), MAX_EPSILON) == MAX_EPSILON


@pytest.mark.parametrize("rounds", [*range(1, 18), 100])
def test_a_pass_for_every_four_rounds_and_no_part_that_never_serves(rounds: int) -> None:
    period = period_of(manifest_of(rounds=rounds))
    assert period <= rounds
    assert participations(rounds, period) == max(1, rounds // PASS)


def test_short_demos_cost_what_the_default_does() -> None:
    costs = [headline(lines(manifest_of(rounds=rounds), rounds)) for rounds in range(1, 8)]
    assert costs == pytest.approx([costs[3]] * 7, rel=1e-3)


@pytest.mark.parametrize("rounds", [1, 2, 4, 7, 8])
def test_a_part_has_room_for_every_client_and_its_sum_the_same_share(rounds: int) -> None:
    manifest = manifest_of(rounds=rounds)
    privacy, training = manifest.example_privacy, manifest.training
    assert privacy is not None
    assert training is not None
    period = privacy.scheduled
    for count in (2, 6, CLIENTS_MAX):
        most = max(len(client.train) for client in load_clients(count))
        assert period * privacy.examples_max >= most
    held = sum(len(client.train) for client in load_clients(6))
    assert 0.5 < training.denominator * period / held < 1  # some devices drop out
    assert training.batch_size * period == pytest.approx(held / 6, rel=0.3)


def test_rolora_has_an_odd_period_and_local_noise_none() -> None:
    for rounds in range(1, 18):
        assert period_for("distributed", "rolora", rounds) % 2 == 1
        assert period_of(manifest_of("rolora", rounds=rounds)) <= rounds
    assert period_of(manifest_of("fedavg")) == 1
