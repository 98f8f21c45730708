"""A trainer that is told to stop ends within one pass, says how far it is, and is good for more."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from client_sdk.errors import ContributionError
from client_sdk.training.algorithms.passes import Passes
from tests.kits.tiny_training import job, tiny_task, trainer

PAIRS = [(f"question {n}", f"answer number {n}") for n in range(10)]
TASKS: dict[str, dict[str, Any]] = {
    "fedsgd": {"sampling_rate": 1.0},
    "fedavg": {"privacy": "none"},
    "local": {"privacy": "local", "sampling_rate": 1.0},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_trainer_ends_within_the_pass_in_which_it_is_told_to(name: str) -> None:
    manifest, it = tiny_task(**TASKS[name]), trainer(PAIRS, micro_batch=2)
    stop, told = threading.Event(), list[tuple[int, int]]()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        stop.set()

    with pytest.raises(ContributionError, match="training-stopped"):
        it.contribute(job(manifest, stop=stop, progress=progress))
    assert len(told) == 1
    told.clear()
    it.contribute(job(manifest, progress=lambda done, total: told.append((done, total))))
    assert told == sorted(set(told))
    assert told[-1][0] == told[-1][1]


def test_encoding_ends_with_the_example_in_which_it_is_told_to() -> None:
    stop, read = threading.Event(), list[int]()

    class Slow(list[tuple[str, str]]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            stop.set()
            return super().__getitem__(index)

    it = trainer(Slow(PAIRS))
    with pytest.raises(ContributionError, match="training-stopped"):
        it.contribute(job(tiny_task(), stop=stop))
    assert read == [0]
    it.contribute(job(tiny_task()))
    assert it.examples == len(PAIRS)


def test_what_later_batches_need_is_estimated_from_the_present_one() -> None:
    told: list[tuple[int, int]] = []
    passes = Passes(lambda done, total: told.append((done, total)))
    passes.expect(3)
    for rows in (4, 2, 0):
        passes.begin(rows)
        for _ in range(rows // 2):
            passes.passed(2)
    assert told == [(2, 12), (4, 12), (6, 8)]
