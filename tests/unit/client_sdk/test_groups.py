"""Which rows a contributor adds up before it clips, and who is let into a task of persons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk.contribution import TrainingJob, check_contributor
from client_sdk.errors import PolicyRefusal
from client_sdk.training.trainer import LoraTrainer
from secagg.manifest import Manifest
from secagg_cli.join.trainer import LazyTrainer
from tests.kits.tasks import built

EXAMPLES = built()
PERSONS = built(unit="person", unit_rows_max=2)
NAMES = st.lists(st.one_of(st.none(), st.sampled_from("abcd")), max_size=12)


def job(manifest: Manifest, **fields: object) -> TrainingJob:
    return TrainingJob(manifest, 0, np.zeros(0, np.float32), 0, **fields)  # type: ignore[arg-type]


@given(names=NAMES)
def test_where_examples_are_protected_each_row_is_by_itself(names: list[str | None]) -> None:
    assert job(EXAMPLES).groups(names) == [(row,) for row in range(len(names))]


@given(names=NAMES, more=NAMES)
def test_a_persons_rows_are_its_first_ones_whoever_else_there_is(
    names: list[str | None], more: list[str | None]
) -> None:
    places = job(PERSONS).groups(names)
    groups = [group for group in places if group]
    assert len(places) == len(names)
    assert all(places[group[0]] == group for group in groups)
    assert [{names[row] for row in group} for group in groups] == [
        {name} for name in dict.fromkeys(names) if name is not None
    ]
    for group in groups:
        name = names[group[0]]
        own = [row for row, other in enumerate(names) if other == name]
        assert group == tuple(own[:2])
        mixed = [*names, *(other for other in more if other != name)]
        assert group in job(PERSONS).groups(mixed)


def test_places_are_those_that_the_device_knows() -> None:
    known = {"a": 2, "b": 0, "c": 3}
    asked = job(PERSONS, known_units=lambda units, _: ([known[unit] for unit in units], 5))
    assert asked.groups(["a", None, "b", "a", "a"]) == [(2,), (), (0, 3), (), ()]


@pytest.mark.parametrize("declared", [None, False, 1, "yes"])
def test_a_contributor_that_does_not_say_that_it_groups_is_refused(declared: object) -> None:
    class Own:
        adds_local_noise = schedules_examples = True

    if declared is not None:
        Own.groups_units = declared  # type: ignore[attr-defined]
    with pytest.raises(PolicyRefusal) as caught:
        check_contributor(PERSONS, Own())
    assert caught.value.reason == "units-undeclared"
    assert "person" in str(caught.value)
    check_contributor(EXAMPLES, Own())


def test_the_trainer_says_so_in_an_app_and_in_the_command() -> None:
    check_contributor(PERSONS, LazyTrainer([], None))
    check_contributor(PERSONS, LoraTrainer)
    assert LoraTrainer.groups_units is LazyTrainer.groups_units is True
