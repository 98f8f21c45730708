"""A list whose examples serve in turn: it grows, places are emptied, and nothing moves."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_sdk.errors import StateError, TaskRefusal
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import StorageKey
from client_sdk.state.places import KnownPlaces, KnownUnits
from secagg.secret import Secret
from tests.kits.device import journal_in

SCHEDULE = "ab" * 32
BEFORE = [b"one", b"two", b"", b"four"]


def known(folder: Path, schedule: str = SCHEDULE) -> KnownPlaces:
    """As a new process sees them."""
    return KnownPlaces(journal_in(folder), schedule)


def refused(folder: Path, contents: list[bytes]) -> TaskRefusal:
    with pytest.raises(TaskRefusal) as caught:
        known(folder).check(contents)
    assert caught.value.reason == "data-moved"
    return caught.value


@pytest.mark.parametrize(
    "after",
    [
        BEFORE,
        [*BEFORE, b"five", b"", b"six"],
        [b"one", b"", b"", b"four"],  # one was taken out
        [b"one", b"two", b"three", b"four"],  # where none was yet
        [*BEFORE, b"one"],  # a duplicate: both places hold it
        [b"", b"", b"", b""],
    ],
)
def test_a_list_may_grow_and_places_may_be_emptied(tmp_path: Path, after: list[bytes]) -> None:
    known(tmp_path).check(BEFORE)
    known(tmp_path).check(after)
    known(tmp_path).check(after)


@pytest.mark.parametrize(
    ("after", "place"),
    [
        ([b"one", b"zwei", b"", b"four"], 1),  # edited
        ([b"four", b"one", b"two", b""], 0),  # sorted
        ([b"one", b"four"], 1),  # blank lines and a line were deleted
        ([b"one", b"two", b""], 3),  # the last one was
        ([], 0),
        ([b"one", b"", b"two", b"four"], 2),  # moved to a place where none was
        ([b"one", b"", b"", b"four", b"two"], 4),  # moved to the end
        ([b"new", *BEFORE], 0),
    ],
)
def test_an_example_that_moved_is_found_with_its_first_place(
    tmp_path: Path, after: list[bytes], place: int
) -> None:
    known(tmp_path).check(BEFORE)
    error = refused(tmp_path, after)
    assert f"place {place} " in str(error.expected) or f"{place} places" in str(error.found)
    known(tmp_path).check(BEFORE)  # what was refused is not remembered


def test_what_was_taken_out_may_come_back_to_its_own_place_alone(tmp_path: Path) -> None:
    known(tmp_path).check(BEFORE)
    known(tmp_path).check([b"one", b"", b"", b"four"])
    refused(tmp_path, [b"one", b"", b"", b"four", b"two"])
    refused(tmp_path, [b"one", b"other", b"", b"four"])
    known(tmp_path).check(BEFORE)


def test_each_schedule_has_a_record_of_its_own(tmp_path: Path) -> None:
    known(tmp_path).check(BEFORE)
    known(tmp_path, "cd" * 32).check([b"four"])
    refused(tmp_path, [b"four"])


def test_the_record_tells_nobody_without_the_key_what_an_example_is(tmp_path: Path) -> None:
    """And not with the seal alone broken: a guess of an example cannot be compared with it."""
    known(tmp_path).check([b"a guess"])
    name = "places-" + SCHEDULE[:32]
    assert b"a guess" not in (tmp_path / name).read_bytes()
    opened = journal_in(tmp_path).load_blob(name)
    others = Journal(tmp_path / "other", StorageKey(Secret(bytes([1]) * 32)))
    KnownPlaces(others, SCHEDULE).check([b"a guess"])
    assert opened != others.load_blob(name)


def test_a_record_with_half_a_place_is_damaged(tmp_path: Path) -> None:
    name = "places-" + SCHEDULE[:32]
    broken = {"version": 1, "places": b"x" * 17}
    journal_in(tmp_path).save_blob(name, msgspec.msgpack.encode(broken))
    with pytest.raises(StateError, match="state-damaged"):
        known(tmp_path).check(BEFORE)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lists=st.lists(
        st.lists(st.sampled_from([b"", b"a", b"b", b"c", b"d"]), max_size=6), min_size=2, max_size=5
    )
)
def test_through_any_history_an_example_is_at_one_place_but_for_duplicates(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("places")
    passed: list[list[bytes]] = []
    for contents in lists:
        with contextlib.suppress(TaskRefusal):
            known(folder).check(contents)
            passed.append(contents)
    for example in (b"a", b"b", b"c", b"d"):
        if all(contents.count(example) <= 1 for contents in passed):
            places = {contents.index(example) for contents in passed if example in contents}
            assert len(places) <= 1
    for place in range(6):
        held = [contents[place] for contents in passed if len(contents) > place]
        assert len(set(held) - {b""}) <= 1
    assert [len(contents) for contents in passed] == sorted(map(len, passed))


class TestUnits:
    """Persons and documents: places by their names."""

    def places(self, folder: Path, names: list[str], schedule: str = SCHEDULE) -> list[int]:
        """As a new process gives them."""
        first = {name: row for row, name in enumerate(names) if name}
        found, count = KnownUnits(journal_in(folder), schedule).places(first, len(names))
        assert all(place < count for place in found)
        return found

    def test_a_known_name_is_where_it_was_and_a_new_one_where_no_row_was(
        self, tmp_path: Path
    ) -> None:
        assert self.places(tmp_path, ["anna", "bert", "carl"]) == [0, 1, 2]
        assert self.places(tmp_path, ["dora", "carl", "anna"]) == [3, 2, 0]
        assert self.places(tmp_path, []) == []
        assert self.places(tmp_path, ["bert", "Anna", "7", "\ud800"]) == [1, 4, 5, 6]
        assert self.places(tmp_path, ["\ud800"]) == [6]
        assert self.places(tmp_path, [*[""] * 8, "emil", "", "fred"]) == [8, 10]
        assert self.places(tmp_path, ["", "zoe", *[""] * 9, "gina"]) == [12, 11]
        assert self.places(tmp_path, ["emil", "gina", "zoe"]) == [8, 11, 12]

    def test_no_place_follows_from_who_else_there_is(self, tmp_path: Path) -> None:
        for gone in range(4):
            names = ["anna", "bert", "carl", "dora"]
            names[gone] = ""
            found = self.places(tmp_path / str(gone), names)
            assert found == [place for place in range(4) if place != gone]
            assert self.places(tmp_path / str(gone), [*names, "emil"])[-1] == 4

    def test_another_schedule_begins_anew(self, tmp_path: Path) -> None:
        self.places(tmp_path, ["anna", "bert"])
        assert self.places(tmp_path, ["bert"], "cd" * 32) == [0]

    def test_names_are_not_stored(self, tmp_path: Path) -> None:
        self.places(tmp_path, ["anna-with-a-long-name"])
        assert not any(
            b"anna" in file.read_bytes() for file in tmp_path.iterdir() if file.is_file()
        )
        record = journal_in(tmp_path).load_blob("units-" + SCHEDULE[:32])
        assert record is not None
        assert b"anna" not in record

    def test_a_broken_record_is_no_empty_one(self, tmp_path: Path) -> None:
        broken = msgspec.msgpack.encode({"version": 1, "places": b"123"})
        journal_in(tmp_path).save_blob("units-" + SCHEDULE[:32], broken)
        with pytest.raises(StateError, match="state-damaged"):
            self.places(tmp_path, ["anna"])

    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
        ],
    )
    @given(lists=st.lists(st.lists(st.sampled_from("abcdef"), unique=True), max_size=5))
    def test_through_any_history_a_name_has_one_place_and_a_place_one_name(
        self, tmp_path_factory: pytest.TempPathFactory, lists: list[list[str]]
    ) -> None:
        folder = tmp_path_factory.mktemp("units")
        seen: dict[str, int] = {}
        for names in lists:
            for name, place in zip(names, self.places(folder, names), strict=True):
                assert seen.setdefault(name, place) == place
        assert len(set(seen.values())) == len(seen)
