"""Limits per period: counted ahead, over kills and whatever a clock says; told with both values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest

from client_sdk.accounts.period_limits import OTHER_BYTES, PeriodLimits
from client_sdk.accounts.usage import BLOCK_BYTES, BLOCK_S, NAME, Usage
from client_sdk.errors import ClockError, PolicyRefusal, StateError
from client_sdk.network.server_time import ServerTime
from client_sdk.policy import PrivacyPolicy
from dp.accounting.budget import cost_of
from dp.contracts import CohortSpec
from dp.transfer_sizes import messages_size, upload_size
from secagg.manifest import Manifest
from tests.kits.data_accounts import NO_LIMIT, ONE, TWO, VERIFIER, Folder
from tests.kits.device import PARTNER, account_in, journal_in, make_manifest, sum_spec

DAY = 86_400.0
NOW = 1_800_000_000.0
LIMITS = PeriodLimits(max_bytes=1_000_000, max_training_s=100.0, max_epsilon=5.0)


class Phone:
    """A device's folder, its clock, its steady clock and the aggregator's word."""

    def __init__(self, folder: Path, limits: PeriodLimits = LIMITS) -> None:
        self.folder = folder
        self.limits = limits
        self.own_s, self.steady_s = NOW, 0.0
        self.started()

    def started(self) -> Usage:
        """A new process; what the one before had in memory is gone."""
        journal = journal_in(self.folder)
        self.time = ServerTime(journal, lambda: self.own_s, lambda: self.steady_s)
        self.usage = Usage(journal, self.limits, self.time)
        return self.usage

    def heard(self, said_s: float) -> Usage:
        self.time.hear(said_s)
        return self.usage

    def later(self, seconds: float) -> Usage:
        self.own_s += seconds
        self.steady_s += seconds
        return self.heard(self.own_s)


def refused(work: Awaitable[None]) -> PolicyRefusal:
    async def run() -> None:
        await work

    with pytest.raises(PolicyRefusal) as caught:
        asyncio.run(run())
    return caught.value


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    found = Phone(tmp_path)
    found.heard(NOW)
    return found


def test_bytes_count_until_they_are_a_period_ago(phone: Phone) -> None:
    asyncio.run(phone.usage.spend(900_000))
    error = refused(phone.later(29 * DAY).spend(200_000))
    assert (error.reason, error.expected) == (
        "bytes-of-period",
        "at most 1000000 bytes in 30 days",
    )
    assert error.found == "900000 used and 200000 more"
    assert error.again_at == NOW + 30 * DAY * (1 + 1 / 64)
    assert "2027-02-14" in str(error.remedy)
    assert phone.later(error.again_at - phone.own_s - 1.0).bytes() == 900_000
    asyncio.run(phone.later(1.0).spend(200_000))
    assert phone.usage.bytes() == 200_000


def test_what_never_fits_is_said_to(phone: Phone) -> None:
    error = refused(phone.usage.spend(1_000_001))
    assert error.again_at is None
    assert "never" in str(error.remedy)


def test_bytes_that_did_not_pass_are_given_back(phone: Phone) -> None:
    asyncio.run(phone.usage.spend(600_000))
    phone.usage.give_back(500_000)
    assert phone.usage.bytes() == 100_000
    phone.usage.give_back(-50_000)
    assert phone.usage.bytes() == 150_000


@pytest.mark.parametrize("count", [10, BLOCK_BYTES, 500_000])
def test_a_kill_leaves_out_nothing_and_adds_a_block_at_most(phone: Phone, count: int) -> None:
    asyncio.run(phone.usage.spend(count))
    assert count <= phone.started().bytes() <= count + BLOCK_BYTES


def test_a_small_request_is_not_a_write(phone: Phone) -> None:
    asyncio.run(phone.usage.spend(10))
    before = (phone.folder / NAME).read_bytes()
    asyncio.run(phone.usage.spend(BLOCK_BYTES))
    assert (phone.folder / NAME).read_bytes() == before
    asyncio.run(phone.usage.spend(1))
    assert (phone.folder / NAME).read_bytes() != before


def test_what_is_closed_is_exact(phone: Phone) -> None:
    asyncio.run(phone.usage.spend(1_234))
    asyncio.run(phone.usage.close())
    assert phone.started().bytes() == 1_234


def test_many_steps_take_no_more_room_than_a_period_has(
    phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    phone.limits = PeriodLimits(max_bytes=1 << 40)
    usage = phone.started()
    for _ in range(300):
        phone.later(DAY / 2)
        asyncio.run(usage.spend(BLOCK_BYTES * 2))
    assert usage.bytes() == 61 * 2 * BLOCK_BYTES  # of 30 days and a 64th of them
    assert len((phone.folder / NAME).read_bytes()) < 6_000


# ---- clocks


def test_a_clock_that_is_set_alone_grants_no_period(phone: Phone) -> None:
    asyncio.run(phone.usage.spend(900_000))
    for jump_s in (40 * DAY, -40 * DAY):
        usage = phone.started()
        phone.own_s = NOW + jump_s
        assert refused(usage.spend(200_000)).reason == "bytes-of-period"  # before any word
        with pytest.raises(ClockError):
            phone.heard(NOW + 60.0)
        assert refused(usage.spend(200_000)).reason == "bytes-of-period"


def test_an_aggregator_that_lies_about_the_time_grants_no_period(phone: Phone) -> None:
    asyncio.run(phone.usage.spend(900_000))
    with pytest.raises(ClockError):
        phone.heard(NOW + 40 * DAY)
    assert refused(phone.usage.spend(200_000)).reason == "bytes-of-period"


def test_time_that_goes_back_makes_nothing_older(phone: Phone) -> None:
    """Somebody sets the clock back, removes the remembered time, and waits less than a period."""
    asyncio.run(phone.usage.spend(900_000))
    (phone.folder / "server-time").unlink()
    phone.own_s = NOW - 20 * DAY
    usage = phone.started()
    phone.heard(phone.own_s)
    usage.note_charges(["cohort"])
    asyncio.run(usage.spend(1_000))
    assert phone.later(29 * DAY).bytes() >= 900_000
    assert phone.later(20 * DAY).charged() == {"cohort": NOW}


def test_what_was_used_before_any_time_was_known_counts_from_the_first_word(
    tmp_path: Path,
) -> None:
    phone = Phone(tmp_path)
    asyncio.run(phone.usage.spend(700_000))
    assert phone.usage.bytes() == 700_000
    phone.heard(NOW)
    asyncio.run(phone.usage.spend(100_000))
    assert refused(phone.later(29 * DAY).spend(300_000)).again_at == NOW + 30 * DAY * (1 + 1 / 64)


# ---- training


def train(phone: Phone, seconds: float, task: str = "one") -> None:
    async def work() -> None:
        async with phone.usage.training(task):
            phone.steady_s += seconds

    asyncio.run(work())


def test_training_is_counted_and_the_last_one_must_fit_again(phone: Phone) -> None:
    assert phone.usage.training_left_s() == 100.0
    train(phone, 60.0)
    assert phone.usage.training_left_s() == 40.0
    with pytest.raises(PolicyRefusal) as caught:
        phone.usage.demand_training("one")
    error = caught.value
    assert (error.reason, error.expected) == ("training-of-period", "at most 100 s in 30 days")
    assert error.found == "60.0 s used and 60.0 s more"
    assert error.again_at == NOW + 30 * DAY * (1 + 1 / 64)
    phone.usage.demand_training("another")
    assert phone.started().training_s() == 60.0


def test_training_that_is_interrupted_does_not_show_how_long_the_next_takes(phone: Phone) -> None:
    train(phone, 60.0)
    phone.later(31 * DAY)

    async def stopped() -> None:
        async with phone.usage.training("one"):
            phone.steady_s += 45.0
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    with pytest.raises(PolicyRefusal) as caught:
        phone.usage.demand_training("one")
    assert caught.value.found == "45.0 s used and 60.0 s more"
    train(phone, 5.0)
    phone.usage.demand_training("one")


def test_a_kill_while_training_counts_a_block_more(phone: Phone) -> None:
    async def killed() -> float:
        async with phone.usage.training("one"):
            return phone.started().training_s()

    assert asyncio.run(killed()) == BLOCK_S


def test_a_long_training_is_written_down_while_it_goes_on(
    phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    given = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        phone.steady_s += seconds
        await given(0)
        if len(slept) > 3:
            await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def killed() -> float:
        async with phone.usage.training("one"):
            while len(slept) < 4:
                await given(0.01)
            return Usage(journal_in(phone.folder), LIMITS, phone.time).training_s()

    assert asyncio.run(killed()) >= sum(slept[:3]) + BLOCK_S


# ---- epsilon


def admit(phone: Phone, most: float, manifest: Manifest = ONE) -> None:
    limits = PeriodLimits(max_epsilon=most)
    phone.limits = limits
    policy = PrivacyPolicy(min_cohort=4, max_epsilon=1e6, max_total_epsilon=1e6, per_period=limits)
    usage = Usage(journal_in(phone.folder), limits, phone.time)
    policy.admit(manifest, own_partner=PARTNER.key, account=account_in(phone.folder), usage=usage)


def spend(phone: Phone, number: int, manifest: Manifest = ONE) -> None:
    account_in(phone.folder).debit(manifest, bytes((number,)) * 32, str(number))


def test_epsilon_of_a_period_is_that_of_its_charges_alone(phone: Phone) -> None:
    three = max(cost_of(unit, ONE, 3) for unit in ("example", "device"))
    for number in range(2):
        spend(phone, number)
        admit(phone, three)
        phone.later(10 * DAY)
    spend(phone, 2)
    with pytest.raises(PolicyRefusal) as caught:
        admit(phone, three)
    error = caught.value
    assert error.reason == "epsilon-of-period"
    assert str(error.expected).endswith("in 30 days")
    assert float(str(error.found)) > three
    assert error.again_at == NOW + 30 * DAY
    phone.later(10 * DAY + 1.0)
    admit(phone, three)


def test_charges_of_all_tasks_count_and_old_ones_are_dated_at_the_first_look(
    phone: Phone,
) -> None:
    spend(phone, 1, TWO)
    one = max(cost_of(unit, ONE, 1) for unit in ("example", "device"))
    for days in (0, 29):
        phone.later(days * DAY)
        with pytest.raises(PolicyRefusal, match="epsilon-of-period"):
            admit(phone, one * 1.01)
    phone.later(1 * DAY + 1.0)
    admit(phone, one * 1.01)


def test_charges_of_other_folders_over_the_data_count(tmp_path: Path) -> None:
    other, mine = (Folder(tmp_path / name) for name in ("other", "mine"))
    other.open().debit(TWO, bytes(32), "c")
    one = max(cost_of(unit, ONE, 1) for unit in ("example", "device"))
    phone = Phone(tmp_path / "usage", PeriodLimits(max_epsilon=one * 1.01))
    phone.heard(NOW)
    policy = PrivacyPolicy(
        min_cohort=4, max_epsilon=1e6, max_total_epsilon=1e6, per_period=phone.limits
    )
    with pytest.raises(PolicyRefusal, match="epsilon-of-period"):
        policy.admit(ONE, own_partner=PARTNER.key, account=mine.open(), usage=phone.usage)


def test_an_epsilon_that_one_round_exceeds_never_fits(phone: Phone) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        admit(phone, 1e-3)
    assert caught.value.again_at is None


# ---- the whole round


def test_a_round_that_does_not_fit_is_refused_before_it_begins(phone: Phone) -> None:
    needed = upload_size(ONE) + sum(messages_size(ONE)) + OTHER_BYTES
    limits = PeriodLimits(max_bytes=needed + 100, max_training_s=10.0)
    policy = PrivacyPolicy(min_cohort=4, max_epsilon=1e6, max_total_epsilon=1e6, per_period=limits)
    phone.limits = limits
    usage, account = phone.started(), account_in(phone.folder)
    phone.heard(NOW)
    policy.admit(ONE, own_partner=PARTNER.key, account=account, usage=usage)
    asyncio.run(usage.spend(101))
    with pytest.raises(PolicyRefusal, match="bytes-of-period"):
        policy.admit(ONE, own_partner=PARTNER.key, account=account, usage=usage)
    policy.admit_terms(ONE, own_partner=PARTNER.key, account=account, usage=usage)


@pytest.mark.parametrize(("size", "least"), [(6, 40_000), (60, 433_000), (128, 900_000)])
def test_the_messages_of_a_round_are_kept_free_by_the_size_of_the_cohort(
    phone: Phone, size: int, least: int
) -> None:
    """``least``: what the messages of such a cohort took, measured (docs/communication.md)."""
    cohort = CohortSpec(size_min=size, size_max=size, survivors_min=size * 5 // 6)
    manifest = make_manifest(sum_spec(cohort=cohort, budget=NO_LIMIT), VERIFIER)
    messages = sum(messages_size(manifest))
    assert messages > least
    whole = upload_size(manifest) + OTHER_BYTES + messages
    phone.limits = PeriodLimits(max_bytes=whole - 1)
    with pytest.raises(PolicyRefusal, match="bytes-of-period") as caught:
        phone.limits.admit_work(manifest, phone.started())
    assert caught.value.found == f"0 used and {whole} more"
    phone.limits = PeriodLimits(max_bytes=whole)
    phone.limits.admit_work(manifest, phone.started())


def test_a_record_that_does_not_open_is_damage(phone: Phone) -> None:
    asyncio.run(phone.usage.spend(1))
    (phone.folder / NAME).write_bytes(b"x" * 100)
    with pytest.raises(StateError, match="state-damaged"):
        phone.started()


@pytest.mark.parametrize("period_s", [0.0, 59.0, 367 * DAY, float("nan")])
def test_a_period_is_a_minute_to_a_year(period_s: float) -> None:
    with pytest.raises(ValueError, match="period_s"):
        PeriodLimits(period_s=period_s)
