"""With half-normal training times a buffer needs fewer updates, and waits for nobody."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.buffers import BUFFER, DEVICES, MODEL_MIN, VERSIONS_BACK, Federation, Outcome


def synchronous(seed: int, slow: int = 0) -> Outcome:
    return Federation("fedavg", DEVICES, DEVICES, seed, slow=slow).run()


def buffered(seed: int, slow: int = 0) -> Outcome:
    return Federation("fedbuff", DEVICES, BUFFER, seed, slow=slow).run()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_third_of_the_updates_and_a_tenth_of_the_time_reach_the_same_loss(seed: int) -> None:
    rounds, buffers = synchronous(seed), buffered(seed)
    assert rounds.reached
    assert buffers.reached
    assert 3 * (buffers.updates + buffers.wasted) < rounds.updates
    assert 10 * buffers.time < rounds.time
    assert np.mean(buffers.stale) > 0
    assert max(buffers.stale) <= VERSIONS_BACK


def test_devices_that_never_finish_block_nobody() -> None:
    """One is enough to stop synchronous rounds of all; a tenth of all changes no buffer's pace."""
    assert synchronous(0, slow=1).releases == 0
    undisturbed, disturbed = buffered(0), buffered(0, slow=DEVICES // 10)
    assert disturbed.reached
    assert np.mean(disturbed.gaps) < 1.5 * np.mean(undisturbed.gaps)
    assert max(disturbed.gaps) < 1.0  # a synchronous round of all takes about 2.7


def test_each_release_follows_at_once_on_the_arrival_that_completes_it() -> None:
    """Devices leave the queue in whole groups; what waits could not have made a cohort."""
    federation = Federation("fedbuff", DEVICES, BUFFER, 3)
    federation.run()
    left = [federation._devices[number].version for _, number in federation._waiting]
    usable = [v for v in set(left) if left.count(v) >= MODEL_MIN]
    assert sum(left.count(v) for v in usable) < BUFFER


def test_the_same_seed_replays_the_same_run() -> None:
    first, second = buffered(4), buffered(4)
    assert (first.updates, first.time, first.stale) == (second.updates, second.time, second.stale)
