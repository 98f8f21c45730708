"""Tasks that protect persons: all rows that name one are summed and clipped as one, and no other
row is used. Through the real trainer, with the tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk.state.places import KnownUnits
from client_sdk.training.algorithms import ALGORITHMS
from client_sdk.training.algorithms.work import Work
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.row_forms import owners_of
from client_sdk.training.trainer import LoraTrainer
from dp.contracts import BudgetSpec
from dp.schedule import part_of, schedule_of
from secagg.manifest import Manifest
from secagg_cli.models.corpus import load_clients
from tests.kits.device import journal_in
from tests.kits.tasks import seeded
from tests.kits.tiny_training import job, tiny_task, trainer

PAIRS = load_clients(6)[4].train[:8]
OWNERS = ("anna", "bert", "anna", "carl", "anna", "bert", "dora", "anna")


def of(owners: Sequence[Any], pairs: Sequence[Any] = PAIRS) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "answer": answer, "unit": owner}
        for (prompt, answer), owner in zip(pairs, owners, strict=False)
    ]


ROWS = of(OWNERS)


def task(privacy: Any = "distributed", algorithm: str | None = None, **changes: Any) -> Manifest:
    terms = {"unit": "person", "unit_rows_max": 3, "sampling_rate": 1.0, **changes}
    return tiny_task(privacy, algorithm, **terms)


PERSONS = task()
SCHEDULED = task(
    period=3, budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=9), examples_max=4
)


def norm(total: np.ndarray) -> float:
    return float(np.sqrt((total.astype(object) ** 2).sum()))


def gradient(rows: Sequence[Any], manifest: Manifest = PERSONS, **fields: Any) -> np.ndarray:
    return trainer(rows).contribute(job(manifest, **fields))["gradient"]


class Coinless:
    """The same coins for whatever is rounded, however many vectors were rounded before."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, count: int) -> bytes:
        self.asked += 1
        return seeded(0)(count)


@pytest.fixture
def without_coins_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum with a person and one without it differ by that person's vector alone."""
    monkeypatch.setattr(LoraTrainer, "__init__", _init(LoraTrainer.__init__))


def _init(real: Any) -> Any:
    def init(self: LoraTrainer, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **{**options, "random_bytes": Coinless()})

    return init


@pytest.mark.usefixtures("without_coins_of_others")
class TestSensitivity:
    """By brute force: every person, every subset of the rows of one, hostile rows."""

    clip_units = PERSONS.segments[0].clip_units

    def test_no_person_moves_a_sum_by_more_than_one_clip(self) -> None:
        whole = gradient(ROWS)
        moved = {}
        for person in set(OWNERS):
            others = [row if row["unit"] != person else {} for row in ROWS]
            moved[person] = norm(whole - gradient(others))
        assert all(0.9 * self.clip_units < by <= self.clip_units for by in moved.values())

    def test_nor_does_any_set_of_rows_that_a_person_may_bring(self) -> None:
        """More rows, the same row again and again, rows that fail: never more than one clip."""
        alone = gradient(of(("bert",) * 8))
        assert 0 < norm(alone) <= self.clip_units
        others = of(("bert", "carl"), PAIRS[6:])
        base = gradient(others)
        for count in range(1, 6):
            for chosen in itertools.islice(itertools.combinations(range(6), count), 1):
                rows = of(("anna",) * count, [PAIRS[i] for i in chosen])
                assert norm(gradient([*rows, *others]) - base) <= self.clip_units
        for rows in (
            of(("anna",) * 6, [PAIRS[0]] * 6),
            of(("anna", None, "anna")),
            [{}, *ROWS[:1]],
        ):
            assert norm(gradient([*rows, *others]) - base) <= self.clip_units

    def test_one_that_is_taken_out_lets_nobody_in(self) -> None:
        """Where a device holds more persons than a sum has room for."""
        few = task(examples_max=2)
        rows = of(("anna", "bert", "carl"))
        moved = gradient(rows, few) - gradient([{}, *rows[1:]], few)
        assert 0 < norm(moved) <= few.segments[0].clip_units

    def test_clipped_row_by_row_the_same_person_moves_it_by_more(self) -> None:
        """What would be without the grouping: a task that protects examples, the same rows."""
        examples = tiny_task("distributed", sampling_rate=1.0)
        others = [row if row["unit"] != "anna" else {} for row in ROWS]
        moved = gradient(ROWS, examples) - gradient(others, examples)
        assert norm(moved) > 2 * self.clip_units

    def test_a_persons_sum_is_that_of_its_gradients(self) -> None:
        """Far within the clip, so that nothing is shortened: sums, not means."""
        wide = task(clip=8.0)
        both, first, second = (
            gradient(of(("anna",) * len(pairs), pairs), wide)
            for pairs in (PAIRS[:2], PAIRS[:1], PAIRS[1:2])
        )
        assert norm(both) < 0.9 * wide.segments[0].clip_units
        rounding = norm(both - first - second)
        assert all(4 * rounding < norm(each) for each in (first, second))

    @pytest.mark.parametrize("micro_batch", [1, 2, 4])
    def test_passes_do_not_part_a_person(self, micro_batch: int) -> None:
        """Rows of a person are summed whichever passes they are in; floats differ in the last
        bits."""
        it = trainer(ROWS, micro_batch=micro_batch)
        found = it.contribute(job(PERSONS))["gradient"]
        assert norm(found - gradient(ROWS)) < 0.05 * self.clip_units

    def test_slopes_are_summed_too(self) -> None:
        slopes = task("distributed", "zeroth-order")
        bound = slopes.segments[0].clip_units
        whole = gradient(ROWS, slopes)
        others = gradient([row if row["unit"] != "anna" else {} for row in ROWS], slopes)
        assert 0 < norm(whole - others) <= bound
        assert norm(gradient(of(("anna",) * 3), slopes)) <= bound


class TestRowsThatFail:
    def test_a_row_that_raises_counts_as_zero_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its person's other rows count, and nobody else's sum moves."""
        wide = task(clip=1e4, unit_rows_max=8)
        scale = wide.segments[0].scale
        without = gradient([*ROWS[:2], {}, *ROWS[3:]], wide) / scale
        real = ExampleGradients._together

        def raises(self: Any, rows: Any) -> Any:
            if any(row.index == 2 for row in rows):
                raise RuntimeError("a row")
            return real(self, rows)

        monkeypatch.setattr(ExampleGradients, "_together", raises)
        it = trainer(ROWS)
        found = it.contribute(job(wide))["gradient"] / scale
        assert np.allclose(found, without, atol=1e-2)
        assert [(one.index, one.reason) for one in it.left_out] == [(2, "example-failed")]

    def test_rows_of_nobody_and_of_several_are_refused_each_by_itself(self) -> None:
        rows = of(("anna", None, ["bert", "carl"], "", ["dora"], True))
        it = trainer(rows)
        found = it.contribute(job(PERSONS))["gradient"]
        told = {one.index: one for one in it.left_out}
        assert {place: one.reason for place, one in told.items()} == {
            1: "example-unit",
            2: "example-owners",
            3: "example-unit",
            5: "example-unit",
        }
        assert '"unit"' in told[1].sentence
        assert "2 persons" in told[2].sentence
        assert np.array_equal(found, gradient([rows[0], {}, {}, {}, rows[4], {}]))

    def test_rows_beyond_the_most_are_told(self) -> None:
        it = trainer(ROWS)
        found = it.contribute(job(PERSONS))["gradient"]
        assert [(one.index, one.reason) for one in it.left_out] == [(7, "example-unit-full")]
        assert np.array_equal(found, gradient(ROWS[:7]))

    def test_rows_of_persons_without_a_turn_are_told(self) -> None:
        few = task(period=2, budget=BudgetSpec(max_epsilon=None), examples_max=1)  # two persons
        it = trainer(of(("anna", "bert", "anna", "carl", "bert")))
        it.contribute(job(few, part=0))
        assert [(one.index, one.reason) for one in it.left_out] == [(3, "example-without-turn")]
        assert "the persons at the first 2 places" in it.left_out[0].sentence

    def test_which_rows_are_used_follows_from_the_person_alone(self) -> None:
        """Others between them, before them, none at all."""
        own = of(("anna",) * 5)
        alone = trainer(own)
        alone.contribute(job(PERSONS))
        mixed = trainer([row for one in own for row in (*of(("bert",)), one, {})])
        mixed.contribute(job(PERSONS))
        assert [one.index for one in alone.left_out] == [3, 4]
        full = [one.index for one in mixed.left_out if one.reason == "example-unit-full"]
        assert full == [9, 10, 12, 13]  # two of each
        assert [i for i in full if i % 3 == 1] == [10, 13]

    def test_without_a_row_that_names_one_there_is_noise_alone(self) -> None:
        it = trainer(PAIRS)
        with pytest.warns(UserWarning, match="noise alone"):
            assert not it.contribute(job(PERSONS))["gradient"].any()
        assert {one.reason for one in it.left_out} == {"example-unit"}


class TestLocalNoise:
    def test_a_step_draws_persons_and_clips_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        works: list[Work] = []
        real = ALGORITHMS["fedavg"]

        def seen(manifest: Any, work: Work) -> Any:
            works.append(work)
            return real(manifest, work)

        monkeypatch.setitem(ALGORITHMS, "fedavg", seen)
        sums: list[int] = []
        whole = Work.unit_sums
        monkeypatch.setattr(Work, "unit_sums", lambda self, c: _counted(whole(self, c), sums))
        trainer(ROWS).contribute(job(task("local", training={"local_steps": 2})))
        assert works[0].groups == [(0, 2, 4), (1, 5), (), (3,), (), (), (6,), ()]
        assert sums == [4, 4]  # persons, not rows


def _counted(values: Any, sums: list[int]) -> Any:
    count = 0
    for value in values:
        count += 1
        yield value
    sums.append(count)


class TestTasksThatProtectExamples:
    def test_owners_that_are_named_are_told_and_change_nothing(self) -> None:
        examples = tiny_task("distributed", sampling_rate=1.0)
        named = trainer(ROWS)
        found = named.contribute(job(examples))["gradient"]
        assert np.array_equal(found, gradient(PAIRS, examples))
        assert (named.owned, named.left_out) == (8, ())
        named.contribute(job(PERSONS))
        assert named.owned == 0

    def test_a_column_unit_of_another_meaning_leaves_no_row_out(self) -> None:
        """Many data sets have one."""
        it = trainer(of(({"kg": 1}, ["a", "b"], 7.5, "kg")))
        it.contribute(job(tiny_task("distributed", sampling_rate=1.0)))
        assert (it.left_out, it.owned) == ((), 2)


class TestSchedules:
    def known(self, folder: Path) -> Any:
        return KnownUnits(journal_in(folder), schedule_of(SCHEDULED)).places

    def parts(self, folder: Path, rows: Sequence[Any]) -> dict[str, set[int]]:
        """By person, the parts that any of its rows was in."""
        found: dict[str, set[int]] = {}
        real = ALGORITHMS["fedsgd"]
        with pytest.MonkeyPatch.context() as patch:
            for part in range(3):

                def seen(manifest: Any, work: Work, part: int = part) -> Any:
                    for row in work.rows:
                        if row.tokens:
                            found.setdefault(row.owners[0], set()).add(part)
                    return real(manifest, work)

                patch.setitem(ALGORITHMS, "fedsgd", seen)
                gradient(rows, SCHEDULED, part=part, known_units=self.known(folder))
        return found

    def test_all_rows_of_a_person_are_in_one_part(self, tmp_path: Path) -> None:
        seed = bytes.fromhex(schedule_of(SCHEDULED))
        assert self.parts(tmp_path, ROWS) == {
            name: {part_of(place, 3, seed)}
            for name, place in {"anna": 0, "bert": 1, "carl": 3, "dora": 6}.items()
        }

    @pytest.mark.parametrize(
        "after",
        [
            ROWS[::-1],
            sorted(ROWS, key=lambda row: row["unit"], reverse=True),
            [*of(("emil", "fred")), *ROWS],
            [{}, *ROWS[1:], *of(("bert", "anna"))],
            [row if row["unit"] != "anna" else {} for row in ROWS],
            [{**row, "answer": "edited"} for row in ROWS],
        ],
        ids=["reversed", "sorted", "new ones before", "more rows", "one left", "edited"],
    )
    def test_nothing_that_becomes_of_rows_moves_a_person(
        self, tmp_path: Path, after: list[Any]
    ) -> None:
        """Not of its own, and not of others."""
        before = self.parts(tmp_path, ROWS)
        for name, parts in self.parts(tmp_path, after).items():
            assert len(parts) == 1
            assert parts == before.get(name, parts)

    def test_a_person_that_comes_back_has_its_place(self, tmp_path: Path) -> None:
        before = self.parts(tmp_path, ROWS)
        self.parts(tmp_path, ROWS[1:2])
        assert self.parts(tmp_path, [*of(("zoe",)), *ROWS]).items() >= before.items()

    def test_one_that_was_never_there_moves_nobody(self, tmp_path: Path) -> None:
        """In a folder that has seen no list before: the same rows, and empty lines for a person."""
        before = self.parts(tmp_path / "with", ROWS)
        others = [row if row["unit"] != "anna" else {} for row in ROWS]
        after = self.parts(tmp_path / "without", others)
        assert after == {name: parts for name, parts in before.items() if name != "anna"}

    def test_a_part_is_what_its_persons_give_alone(self, tmp_path: Path) -> None:
        """The others are as good as not there: same coins, same sum."""
        for part in range(3):
            known = self.known(tmp_path / "whole")
            whole = gradient(ROWS, SCHEDULED, part=part, known_units=known)
            persons = {
                n for n, parts in self.parts(tmp_path / "whole", ROWS).items() if part in parts
            }
            rows = [row if row["unit"] in persons else {} for row in ROWS]
            alone = gradient(rows, SCHEDULED, part=part, known_units=known)
            assert np.array_equal(whole, alone)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("anna", ("anna",)),
        (" anna\n", ("anna",)),
        ("e\u0301", ("\u00e9",)),
        (["anna", "anna "], ("anna",)),
        (7, ("7",)),
        (7.0, ("7",)),
        (np.int64(7), ("7",)),
        (np.float32(7), ("7",)),
        ("7", ("7",)),
        (["anna", "bert"], ("anna", "bert")),
        (("anna", "anna"), ("anna",)),
        (np.array(["anna", "bert"]), ("anna", "bert")),
        (np.array("anna"), ("anna",)),
        (10**30, (str(10**30),)),
        (None, ()),
        (" ", ()),
        (7.5, ()),
        (float("nan"), ()),
        (float("inf"), ()),
        (float(1 << 60), ()),  # as a float several whole numbers are the same
        (True, ()),
        (np.bool_(True), ()),
        (["anna", None], ()),
        ([], ()),
        ({"name": "anna"}, ()),
        (b"anna", ()),
    ],
)
def test_what_is_a_name(value: Any, names: tuple[str, ...]) -> None:
    assert owners_of({"unit": value}) == names
    assert owners_of({"prompt": "a"}) == owners_of(("a", "b")) == owners_of(3) == ()
