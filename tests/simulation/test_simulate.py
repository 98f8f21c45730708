"""``simulate``: exact, replayable from its seed, the same over any number of processes."""

from __future__ import annotations

import pytest

from secagg.errors import ConfigurationError
from secagg.simulation import simulate


def test_the_same_seed_replays_the_same_run() -> None:
    first = simulate(8, 5, 0.25, 3, seed=3)
    assert first == simulate(8, 5, 0.25, 3, seed=3)
    assert first.digest != simulate(8, 5, 0.25, 3, seed=4).digest


def test_worker_processes_do_not_change_what_happens() -> None:
    assert simulate(6, 4, 0.2, 2, seed=1, processes=2) == simulate(6, 4, 0.2, 2, seed=1)


@pytest.mark.parametrize("bits", [8, 16, 21, 32, 33, 62])
def test_sums_are_exact_in_every_lane(bits: int) -> None:
    result = simulate(5, 70, 0.2, 2, seed=bits, bits=bits)
    assert result.exact
    assert result.released == result.rounds == 2


def test_dropouts_within_the_bound_never_stop_a_round() -> None:
    result = simulate(13, 3, 0.3, 6, seed=5)
    assert result.exact
    assert result.released == 6
    assert all(10 <= survivors <= 13 for survivors in result.survivors)
    assert len(set(result.survivors)) > 1


def test_dropouts_beyond_the_bound_abort_and_stay_exact() -> None:
    result = simulate(8, 3, 0.6, 4, seed=5)
    assert result.exact
    assert result.aborted > 0
    assert result.released + result.aborted == result.rounds == 4


@pytest.mark.parametrize(
    ("clients", "length", "dropout", "rounds", "processes"),
    [(1, 1, 0.0, 1, 1), (2, 0, 0.0, 1, 1), (2, 1, 1.0, 1, 1), (2, 1, 0.0, 0, 1), (2, 1, 0.0, 1, 0)],
)
def test_impossible_simulations_are_refused(
    clients: int, length: int, dropout: float, rounds: int, processes: int
) -> None:
    with pytest.raises(ConfigurationError, match="simulation-parameters"):
        simulate(clients, length, dropout, rounds, processes=processes)
