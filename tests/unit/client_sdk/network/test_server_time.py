"""What time a device believes it is: the server's word, within bounds, and a steady clock."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from client_sdk.errors import ClockError
from client_sdk.network.server_time import CLOCK_WRONG_S, DRIFT_S, ServerTime, steady_clock
from tests.kits.device import journal_in

NOW = 1_800_000_000.0
HOUR, DAY, YEAR = 3_600.0, 86_400.0, 31_557_600.0


class World:
    """True time, a device's own clock that is off by ``wrong_s``, and its steady clock."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.true_s = NOW
        self.wrong_s = 0.0
        self.steady_s = 5.0
        self.time = self.restarted()

    def restarted(self) -> ServerTime:
        journal = None if self.folder is None else journal_in(self.folder)
        self.time = ServerTime(journal, lambda: self.true_s + self.wrong_s, lambda: self.steady_s)
        return self.time

    def go_on(self, seconds: float, *, steady: bool = True) -> None:
        self.true_s += seconds
        self.steady_s += seconds if steady else 0.0


def refused(time: ServerTime, said_s: float) -> ClockError:
    before = time.now()
    with pytest.raises(ClockError) as caught:
        time.hear(said_s)
    assert time.now() == before  # a word that is not believed changes nothing
    return caught.value


@pytest.mark.parametrize("wrong_s", [0, 600, -600, CLOCK_WRONG_S, -CLOCK_WRONG_S, 4_000, -4_000])
def test_a_device_whose_clock_is_off_a_little_judges_by_the_servers_time(wrong_s: float) -> None:
    world = World()
    world.wrong_s = wrong_s
    world.time.hear(NOW)
    world.go_on(7.0)
    assert world.time.now() == NOW + 7.0


@pytest.mark.parametrize("wrong_s", [CLOCK_WRONG_S + 1, 7_200, 3 * DAY, 2 * YEAR])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_clock_that_is_off_by_more_is_named_with_both_times(wrong_s: float, sign: int) -> None:
    world = World()
    world.wrong_s = sign * wrong_s
    error = refused(world.time, NOW)
    assert error.reason == "clock-wrong"
    assert ("ahead of" if sign > 0 else "behind") in error.message
    assert "2027-01-15 08:00:00 UTC" in str(error.expected)
    assert str(error.found).endswith("UTC")
    assert "Set this device's clock" in str(error.remedy)


def test_the_error_says_the_difference_as_a_person_would() -> None:
    world = World()
    for wrong_s, said in (
        (7_200, "2.0 hours ahead"),
        (7_199, "2.0 hours"),
        (5_500, "1.5 hours"),
        (9 * DAY, "9.0 days"),
    ):
        world.wrong_s = wrong_s
        assert said in refused(world.time, NOW).message


@pytest.mark.parametrize("said_s", [math.nan, math.inf, -math.inf, 0.0, -1e300, 1e11, NOW + YEAR])
def test_a_server_that_lies_about_time_is_not_believed(said_s: float) -> None:
    world = World()
    assert refused(world.time, said_s).reason == "clock-wrong"
    world.time.hear(NOW)
    assert refused(world.time, said_s).reason == "clock-wrong"
    assert world.time.now() == NOW


def test_jumps_of_the_own_clock_between_two_words_change_nothing() -> None:
    world = World()
    world.time.hear(NOW)
    for jump_s in (DAY, -3 * DAY, YEAR):
        world.wrong_s = jump_s
        world.go_on(1.0)
        assert world.time.now() == world.true_s
    assert refused(world.time, world.true_s).reason == "clock-wrong"  # but before the next round


def test_the_servers_time_never_goes_behind_what_was_seen(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.time.hear(NOW)
    world.go_on(2_000.0)
    error = refused(world.time, NOW)  # it has stood still
    assert error.reason == "server-time-back"
    assert "33 minutes behind" in error.message
    assert error.expected == "2027-01-15 08:18:20 UTC or later"
    assert refused(world.time, NOW + 2_000.0 - DRIFT_S - 1).reason == "server-time-back"
    world.time.hear(NOW + 2_000.0 - DRIFT_S)
    assert world.time.now() == NOW + 2_000.0 - DRIFT_S


def test_small_steps_back_do_not_add_up() -> None:
    world = World()
    world.time.hear(NOW)
    world.time.hear(NOW - DRIFT_S + 1)
    assert refused(world.time, NOW - DRIFT_S - 300).reason == "server-time-back"


def test_what_was_seen_is_remembered_over_restarts(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.time.hear(NOW)
    world.go_on(3_000.0)
    world.time.keep()
    world.restarted()
    world.wrong_s = -3_000.0  # the own clock has gone back too, as at a start without a network
    assert refused(world.time, NOW).reason == "server-time-back"
    world.time.hear(NOW + 3_000.0)


def test_an_awake_device_forgets_at_most_a_minute(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.time.hear(NOW)
    written = (tmp_path / "server-time").read_bytes()
    world.go_on(59.0)
    world.time.keep()
    assert (tmp_path / "server-time").read_bytes() == written
    world.go_on(1.0)
    world.time.keep()
    assert (tmp_path / "server-time").read_bytes() != written


def test_the_remembered_time_is_sealed(tmp_path: Path) -> None:
    from client_sdk.errors import StateError

    world = World(tmp_path)
    world.time.hear(NOW)
    path = tmp_path / "server-time"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(StateError):
        world.restarted()


def test_a_device_that_slept_for_a_week_is_let_in(tmp_path: Path) -> None:
    for steady in (True, False):  # whether its steady clock goes on in suspend or not
        world = World(tmp_path / str(steady))
        world.time.hear(NOW)
        world.go_on(7 * DAY, steady=steady)
        world.time.hear(NOW + 7 * DAY)
        assert world.time.now() == NOW + 7 * DAY
        world.restarted().hear(NOW + 7 * DAY)


def test_replicas_may_differ_by_seconds_and_be_set_by_minutes() -> None:
    world = World()
    for off_s in (0.0, 20.0, -20.0, 600.0, -250.0):
        world.time.hear(world.true_s + off_s)
        world.go_on(30.0)
        assert world.time.now() == world.true_s + off_s


def test_a_device_that_once_believed_the_future_has_a_way_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wrong_s = YEAR
    world.time.hear(NOW + YEAR)
    world.wrong_s = 0.0
    error = refused(world.restarted(), NOW)
    assert error.reason == "server-time-back"
    assert "server-time" in str(error.remedy)
    (tmp_path / "server-time").unlink()
    world.restarted().hear(NOW)


def test_the_steady_clock_is_steady() -> None:
    assert steady_clock() <= steady_clock()
