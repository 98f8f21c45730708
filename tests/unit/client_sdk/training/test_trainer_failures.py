"""A job that gave nothing of the examples says so, however much its values look like any others."""

from __future__ import annotations

from typing import Any

import pytest

from client_sdk.training.gradients import ExampleGradients
from tests.kits.tiny_training import NEVER, job, tiny_task, trainer

PAIRS = [("What is AI?", "A field of science."), ("Hi", "Hello there."), ("Who?", "A model.")]


def memory_runs_out(monkeypatch: pytest.MonkeyPatch, rows: set[int]) -> None:
    """In the passes of these rows; the self-test's made-up ones are of no place."""

    def failing(real: Any) -> Any:
        def run(self: ExampleGradients, *arguments: Any) -> Any:
            given = arguments[0] if isinstance(arguments[0], list) else arguments
            if self._failed is not None and any(row.index in rows for row in given):
                raise MemoryError
            return real(self, *arguments)

        return run

    for name in ("_together", "_alone"):
        monkeypatch.setattr(ExampleGradients, name, failing(getattr(ExampleGradients, name)))


@pytest.mark.parametrize("method", ["hooks", "loop"])
def test_memory_that_runs_out_in_every_pass_is_told(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    it = trainer(PAIRS, method=method)
    manifest = tiny_task(sampling_rate=1.0)
    with monkeypatch.context() as patch:
        memory_runs_out(patch, {0, 1, 2})
        assert not it.contribute(job(manifest))["gradient"].any()
        assert it.failure is not None
        assert (it.failure.reason, it.failure.row) == ("examples-failed", 0)
        assert "MemoryError" in str(it.failure)
        assert "micro_batch" in str(it.failure.remedy)
    with monkeypatch.context() as patch:
        memory_runs_out(patch, {0, 2})
        assert it.contribute(job(manifest))["gradient"].any()
        assert it.failure is None
    assert it.contribute(job(manifest))["gradient"].any()
    assert it.failure is None


@pytest.mark.filterwarnings("ignore:No example of this data set")
@pytest.mark.parametrize(("data", "row"), [([], None), ([{}, {}], 0), ([("a", "")], 0)])
def test_a_data_set_of_which_nothing_can_be_used_is_told(data: list[Any], row: int | None) -> None:
    it = trainer(data)
    assert not it.contribute(job(tiny_task(sampling_rate=1.0)))["gradient"].any()
    assert it.failure is not None
    assert (it.failure.reason, it.failure.row) == ("dataset-empty", row)


def test_a_batch_in_which_nobody_was_drawn_is_no_failure() -> None:
    it = trainer(PAIRS)
    it.contribute(job(tiny_task(sampling_rate=NEVER)))
    assert it.failure is None
