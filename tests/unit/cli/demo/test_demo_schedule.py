"""The demo's schedule follows its rounds: which parts, what an example costs, what a sum holds."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from dp.accounting.statements import headline, lines
from dp.contracts import TaskSpec
from dp.schedule import participations, period_of
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from secagg_cli.demo.choice import resolve
from secagg_cli.demo.kills import plan_kills
from secagg_cli.demo.spec import MAX_EPSILON, DemoOptions, device_limit, task_spec
from secagg_cli.models.corpus import CLIENTS_MAX, load_clients
from secagg_cli.models.presets import period_for
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
def test_the_default_costs_what_it_promises(model: str) -> None:
    manifest = manifest_of(model=model)
    privacy = manifest.example_privacy
    assert privacy is not None
    assert (privacy.scheduled, privacy.sampling_rate) == (4, 1.0)
    stated = lines(manifest, 4)
    assert not any(line.amplified for line in stated)
    cost = headline(stated)
    assert cost is not None
    assert 0.95 * DEFAULT_PROMISE < cost <= DEFAULT_PROMISE
    assert device_limit(spec_of(model=model), MAX_EPSILON) == MAX_EPSILON


@pytest.mark.parametrize("rounds", [*range(1, 18), 100])
def test_an_example_is_in_one_sum_and_no_part_never_serves(rounds: int) -> None:
    period = period_of(manifest_of(rounds=rounds))
    assert period == rounds
    assert participations(rounds, period) == 1


@pytest.mark.parametrize("rounds", [1, 3, 8, 100])
def test_no_number_of_rounds_costs_more_than_the_default(rounds: int) -> None:
    cost = headline(lines(manifest_of(rounds=rounds), rounds))
    assert cost is not None
    assert cost <= DEFAULT_PROMISE


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
    steps = training.denominator * min(period, 2)
    assert 0.5 < steps / held < 1  # some devices drop out
    assert training.batch_size * period == pytest.approx(held / 6, rel=0.3)


def test_rolora_has_an_odd_period_and_local_noise_none() -> None:
    for rounds in range(1, 18):
        assert period_for("distributed", "rolora", rounds) % 2 == 1
        period = period_of(manifest_of("rolora", rounds=rounds))
        assert participations(rounds, period) == 2 - rounds % 2
    assert period_of(manifest_of("fedavg")) == 1


def test_a_period_of_ones_own_changes_batch_and_cost_and_must_fit_the_rounds() -> None:
    own = manifest_of(period=2)
    assert period_of(own) == 2
    assert (headline(lines(own, 4)) or 0) > (headline(lines(manifest_of(), 4)) or 0)
    with pytest.raises(ConfigurationError, match="schedule-too-long"):
        spec_of(rounds=2, period=3)
