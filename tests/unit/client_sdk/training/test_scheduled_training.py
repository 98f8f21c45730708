"""A trainer in a task whose examples serve in turn: one part a job, nothing of the others, nothing
of an earlier job."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk.errors import TaskRefusal
from client_sdk.state.places import KnownPlaces
from client_sdk.training.algorithms import ALGORITHMS, steps
from client_sdk.training.algorithms.work import Work
from client_sdk.training.dataset import Input, encode_rows
from client_sdk.training.examples import _content, check_form
from client_sdk.training.row_files import read_file
from client_sdk.training.trainer import LoraTrainer
from dp.contracts import BudgetSpec
from dp.schedule import places_of, schedule_of
from secagg.manifest import Manifest
from secagg_cli.models.corpus import load_clients
from tests.kits.device import journal_in
from tests.kits.tasks import seeded
from tests.kits.tiny_training import job, tiny, tiny_task, trainer

PERIOD = 3
PAIRS = load_clients(6)[4].train[:11]
BAD: dict[str, Any] = {}


def scheduled(
    privacy: Any = "distributed", algorithm: str | None = None, **changes: Any
) -> Manifest:
    terms: dict[str, Any] = {
        "period": PERIOD,
        "budget": BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=9),
        "sampling_rate": 1.0,
    }
    return tiny_task(privacy, algorithm, **{**terms, **changes})


SUMS = scheduled()


def places(
    manifest: Manifest, part: int, count: int = len(PAIRS), most: int = 1 << 20
) -> list[int]:
    return places_of(part, count, PERIOD, most, bytes.fromhex(schedule_of(manifest))).tolist()


def emptied(pairs: list[Any], kept: list[int]) -> list[Any]:
    return [pair if place in kept else BAD for place, pair in enumerate(pairs)]


def gradient(it: LoraTrainer, part: int, manifest: Manifest = SUMS, **fields: Any) -> np.ndarray:
    return it.contribute(job(manifest, part=part, **fields))["gradient"]


class Seen:
    """Which places reached an algorithm, with its real work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
        self.works: list[Work] = []
        real = ALGORITHMS[algorithm]

        def contribute(manifest: Manifest, work: Work) -> Mapping[str, Any]:
            self.works.append(work)
            return real(manifest, work)

        monkeypatch.setitem(ALGORITHMS, algorithm, contribute)

    def tokens(self) -> list[list[int]]:
        """Of each job, the places of rows that are not empty."""
        return [[row.index for row in work.rows if row.tokens] for work in self.works]


def test_each_part_is_summed_once_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, it = Seen(monkeypatch, "fedsgd"), trainer(PAIRS)
    for part in range(PERIOD):
        gradient(it, part)
    assert seen.tokens() == [places(SUMS, part) for part in range(PERIOD)]
    assert sorted(itertools.chain(*seen.tokens())) == list(range(len(PAIRS)))
    for work, part in zip(seen.works, range(PERIOD), strict=True):
        assert [row.index for row in work.rows] == list(range(len(PAIRS)))  # each at its place
        assert work.places.tolist() == places(SUMS, part)


def test_a_part_is_what_its_examples_give_alone() -> None:
    """The others are as good as not there: same coins, same sum, to the last unit."""
    for part in range(PERIOD):
        whole = gradient(trainer(PAIRS), part)
        alone = gradient(trainer(emptied(PAIRS, places(SUMS, part))), part)
        assert whole.any()
        assert np.array_equal(whole, alone)


def test_a_job_leaves_nothing_for_the_next_one() -> None:
    """A second job gives what it gives alone, whatever part and model went before."""
    vector = np.full(len(job(SUMS).vector), 0.01, np.float32)
    used = trainer(PAIRS)
    for part in (0, 1, 2):
        gradient(used, part, vector=vector)
    used._random_bytes = seeded(7)
    fresh = trainer(PAIRS, seed=7)
    assert np.array_equal(gradient(used, 1, version=3), gradient(fresh, 1, version=3))


@pytest.mark.parametrize(
    "training",
    [
        {"local_optimiser": "sgd", "local_momentum": 0.9},
        {"local_optimiser": "adam", "local_momentum": 0.0},
    ],
)
def test_moments_of_local_optimisers_begin_anew(training: dict[str, Any]) -> None:
    manifest = scheduled("local", sampling_rate=0.5, training={**training, "local_steps": 2})
    used = trainer(PAIRS)
    used.contribute(job(manifest, part=0))
    used._random_bytes = seeded(7)
    again = used.contribute(job(manifest, part=1))["delta"]
    fresh = trainer(PAIRS, seed=7).contribute(job(manifest, part=1))["delta"]
    assert np.array_equal(again, fresh)


def test_local_steps_draw_inside_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step by Poisson sampling among the part's places, empty ones too."""
    asked: list[tuple[int, float]] = []
    real = steps.poisson_batch

    def poisson(count: int, rate: float, random_bytes: Any) -> np.ndarray:
        asked.append((count, rate))
        return real(count, rate, random_bytes)

    monkeypatch.setattr(steps, "poisson_batch", poisson)
    manifest = scheduled("local", sampling_rate=0.5, training={"local_steps": 3})
    seen = Seen(monkeypatch, "fedavg")
    it = trainer([*PAIRS[:3], BAD, *PAIRS[4:]])
    it.contribute(job(manifest, part=2))
    part = places(manifest, 2)
    assert asked == [(len(part), 0.5)] * 3
    assert seen.tokens() == [[place for place in part if place != 3]]


def test_local_noise_takes_parts_of_any_length() -> None:
    """There is no room in a ring to keep to: ``examples_max`` is of the sums with distributed
    noise."""
    manifest = scheduled("local", sampling_rate=0.5, examples_max=1)
    assert job(manifest, part=1).places(30).tolist() == places(manifest, 1, 30)


def test_with_distributed_noise_a_part_has_room_whatever_the_device_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = scheduled(examples_max=2)
    seen, it = Seen(monkeypatch, "fedsgd"), trainer(PAIRS)
    for part in range(PERIOD):
        gradient(it, part, manifest)
    assert sorted(itertools.chain(*seen.tokens())) == list(range(2 * PERIOD))
    assert seen.tokens() == [places(manifest, part, most=2) for part in range(PERIOD)]


def test_an_example_that_cannot_be_used_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves no other one to another part; the part is shorter by one clip."""
    seen = Seen(monkeypatch, "fedsgd")
    it = trainer([BAD, *PAIRS[1:]])
    for part in range(PERIOD):
        gradient(it, part)
    assert seen.tokens() == [
        [place for place in places(SUMS, part) if place != 0] for part in range(PERIOD)
    ]
    assert [one.index for one in it.left_out] == [0]


def test_a_part_without_an_example_gives_zeros() -> None:
    part = next(p for p in range(PERIOD) if 0 not in places(SUMS, p))
    assert not gradient(trainer(PAIRS[:1]), part).any()


def test_slopes_are_of_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = scheduled("distributed", "zeroth-order")
    seen = Seen(monkeypatch, "zeroth-order")
    whole = gradient(trainer(PAIRS), 1, manifest)
    alone = gradient(trainer(emptied(PAIRS, places(manifest, 1))), 1, manifest)
    assert np.array_equal(whole, alone)
    assert seen.tokens()[0] == places(manifest, 1)


def test_without_the_client_there_is_no_part() -> None:
    with pytest.raises(TaskRefusal, match="part-missing"):
        trainer(PAIRS).contribute(job(SUMS))


ROWS = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in PAIRS[:5]]


def file_of(folder: Path, rows: list[str]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


class TestAListThatChanges:
    """Of a file that its user edits between two processes."""

    def look(self, folder: Path, rows: list[str]) -> None:
        """What a trainer does with a file before it trains."""
        model, tokenizer = tiny()
        encoded, _ = encode_rows(tokenizer, read_file(file_of(folder, rows)), 64, Input.of(model))
        KnownPlaces(journal_in(folder / "state"), schedule_of(SUMS)).check(
            [row.content for row in encoded]
        )

    @pytest.mark.parametrize(
        "after",
        [
            ROWS,
            [*ROWS, json.dumps({"prompt": "new", "answer": "one"})],
            [ROWS[0], "{}", *ROWS[2:]],
            ["", ROWS[0], "", *ROWS[1:]],  # blank lines are no places
            [json.dumps(json.loads(row), separators=(",", ":")) for row in ROWS],
            [ROWS[0], ROWS[1].replace("answer", "completion"), *ROWS[2:]],  # the same conversation
        ],
    )
    def test_what_may_be(self, tmp_path: Path, after: list[str]) -> None:
        self.look(tmp_path, ROWS)
        self.look(tmp_path, after)

    @pytest.mark.parametrize(
        ("after", "place"),
        [
            (ROWS[::-1], 0),
            (ROWS[:4], 4),
            ([ROWS[0], *ROWS[2:]], 1),
            ([ROWS[0], json.dumps({"prompt": "edited", "answer": "text"}), *ROWS[2:]], 1),
            ([ROWS[0], "{}", *ROWS[2:], ROWS[1]], 5),
        ],
    )
    def test_what_may_not(self, tmp_path: Path, after: list[str], place: int) -> None:
        self.look(tmp_path, ROWS)
        with pytest.raises(TaskRefusal) as caught:
            self.look(tmp_path, after)
        assert caught.value.reason == "data-moved"
        assert f"place {place} " in str(caught.value.expected)

    def test_an_example_that_was_mended_fills_its_place(self, tmp_path: Path) -> None:
        """It was in no sum before."""
        self.look(tmp_path, [ROWS[0], "no JSON", *ROWS[2:]])
        self.look(tmp_path, ROWS)

    def test_a_trainer_looks_before_it_trains(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = Seen(monkeypatch, "fedsgd")
        known = KnownPlaces(journal_in(tmp_path / "state"), schedule_of(SUMS))
        gradient(trainer(PAIRS), 0, known=known.check)
        with pytest.raises(TaskRefusal, match="data-moved"):
            gradient(trainer(PAIRS[::-1]), 1, known=known.check)
        assert len(seen.works) == 1

    def test_every_conversation_that_is_read_has_a_content(self) -> None:
        """With other scripts in a schema, and numbers of other libraries."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tools = [{"type": "function", "function": {"name": "\u017eivot", "n": np.int64(3)}}]
        read = [check_form({"messages": messages, "tools": tools}) for _ in range(2)]
        assert len({_content(one) for one in read}) == 1
        others = [check_form({"messages": messages}), check_form({"text": "a", "label": 1})]
        assert len({_content(one) for one in (read[0], *others)}) == 3
