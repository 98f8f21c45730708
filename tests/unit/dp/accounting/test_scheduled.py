"""Scheduled batches: the k dearest releases are composed, k = charges / period rounded up."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import msgspec
import pytest

from dp.accounting.budget import Account, Charge, charges_of, compose, cost_of
from dp.accounting.events import (
    Composed,
    DiscreteGaussianSum,
    Event,
    NonPrivateRelease,
    Scheduled,
    SkellamRelease,
    adjacency_of,
    composed,
    replace_one,
    scheduled,
)
from dp.accounting.rdp import ORDERS, rdp_curve
from dp.accounting.statements import (
    ACCOUNTANT_SKELLAM,
    OVERRUN_DRAWS,
    NoiseKind,
    ReleaseFacts,
    draws_per_release,
    epsilon_of,
    headline,
    lines,
    local_step,
    ring_release,
    slack_log2,
)
from dp.accounting.totals import Spent, ledger_totals
from dp.contracts import BudgetSpec, TrainingSpec
from dp.errors import AccountingError, BudgetError
from dp.schedule import schedule_of
from secagg.manifest import Manifest
from tests.kits.tasks import built

NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=16)
LOUD, QUIET = ReleaseFacts(survivors=6), ReleaseFacts(survivors=4)
FACTS = {LOUD: 2, QUIET: 3}


def task(period: int = 4, **changes: Any) -> Manifest:
    terms = {"period": period, "sampling_rate": 1.0, "examples_max": 8, "budget": NO_LIMIT}
    return built(**terms | changes)


def of(manifest: Manifest, *counted: tuple[Event, int], releases: int, steps: int = 1) -> float:
    """Epsilon of so many events, with what the randomness of all releases takes from delta."""
    draws = releases * (draws_per_release(manifest) + OVERRUN_DRAWS)
    if steps > 1:
        draws = releases * steps * manifest.data_length
    return epsilon_of(composed(dict(counted)), manifest.budget.delta, slack_log2(draws))


class TestStatements:
    def test_one_pass_costs_what_one_release_does(self) -> None:
        """The figures of docs/privacy.md: noise multiplier 1.4, four releases, delta 1e-5."""
        assert headline(lines(task(), 4)) == pytest.approx(2.9789, abs=1e-4)
        assert headline(lines(task(1), 4)) == pytest.approx(6.6566, abs=1e-4)
        assert headline(lines(task(), 8)) == pytest.approx(4.4313, abs=1e-4)

    @pytest.mark.parametrize("releases", [0, 1, 3, 4, 5, 8, 9, 16])
    def test_the_line_composes_as_many_releases_as_an_example_can_be_in(
        self, releases: int
    ) -> None:
        manifest = task()
        event = ring_release(manifest, QUIET, 1)
        (line,) = lines(manifest, releases)
        expected = of(manifest, (event, -(-releases // 4)), releases=releases)
        assert (line.mode, line.unit, line.amplified) == (NoiseKind.DISTRIBUTED, "example", False)
        assert line.accountant == ACCOUNTANT_SKELLAM
        assert line.epsilon == expected

    def test_an_example_may_be_in_the_releases_of_least_noise(self) -> None:
        manifest = task()
        event = ring_release(manifest, QUIET, 1)
        counts = {LOUD: 5, QUIET: 2}
        (line,) = lines(manifest, counts)
        assert line.epsilon == pytest.approx(of(manifest, (event, 2), releases=7), rel=1e-9)
        (line,) = lines(manifest, {LOUD: 7, QUIET: 2})
        third = of(manifest, (event, 2), (ring_release(manifest, LOUD, 1), 1), releases=9)
        assert line.epsilon == pytest.approx(third, rel=1e-9)

    def test_no_choice_of_releases_costs_more(self) -> None:
        manifest = task(3)
        facts = [ReleaseFacts(survivors=count) for count in (6, 4, 5, 4, 6, 5, 5)]
        (line,) = lines(manifest, facts)
        costs = []
        for chosen in itertools.combinations(facts, 3):
            counted = Counter(ring_release(manifest, each, 1) for each in chosen)
            costs.append(of(manifest, *counted.items(), releases=7))
        assert max(costs) <= line.epsilon * (1 + 1e-12)
        assert line.epsilon == pytest.approx(max(costs), rel=1e-9)

    def test_a_release_more_never_costs_less(self) -> None:
        manifest = task()
        facts = [ReleaseFacts(survivors=count) for count in (6, 5, 6, 6, 4, 6, 5, 4, 4)]
        costs = [headline(lines(manifest, facts[:count])) or 0 for count in range(10)]
        assert costs == sorted(costs)
        assert costs[0] == 0 < costs[1] < costs[9]
        assert costs[9] <= (headline(lines(manifest, 9)) or 0) * (1 + 1e-9)

    def test_between_neighbours_that_exchange_an_example(self) -> None:
        manifest = task()
        event = replace_one(ring_release(manifest, QUIET, 1))
        (line,) = lines(manifest, {LOUD: 3, QUIET: 2}, replaced=True)
        assert line.adjacency == "replace-one"
        assert line.epsilon == pytest.approx(of(manifest, (event, 2), releases=5), rel=1e-9)

    def test_local_steps_of_as_many_contributions(self) -> None:
        manifest = task(
            algorithm="fedavg", privacy="local", sampling_rate=0.5, noise_multiplier=3.0
        )
        step = local_step(manifest)
        plain, amplified = lines(manifest, 7)
        assert plain.epsilon == of(manifest, (step, 4), releases=7, steps=2)
        assert amplified.amplified
        assert amplified.epsilon < plain.epsilon
        assert amplified.epsilon > lines(manifest, 4)[1].epsilon
        assert amplified.epsilon == pytest.approx(lines(task(1, **LOCAL), 2)[1].epsilon, rel=1e-6)

    def test_a_device_is_in_every_sum(self) -> None:
        terms = {"device_noise_multiplier": 1.4, "removable_noise": False}
        manifest = task(**terms)
        example, device = lines(manifest, FACTS)
        counts = {ring_release(manifest, each, 8, "zero-out"): n for each, n in FACTS.items()}
        slack = slack_log2(5 * draws_per_release(manifest))
        assert (example.unit, device.unit) == ("example", "device")
        assert device.epsilon == epsilon_of(composed(counts), manifest.budget.delta, slack)
        assert device.epsilon > example.epsilon

    def test_impossible_counts_and_periods_are_refused(self) -> None:
        manifest = task()
        privacy = msgspec.structs.replace(manifest.example_privacy, period=0)
        with pytest.raises(AccountingError, match="parameter-out-of-range"):
            lines(msgspec.structs.replace(manifest, example_privacy=privacy), 4)


LOCAL: dict[str, Any] = {
    "algorithm": "fedavg",
    "privacy": "local",
    "sampling_rate": 0.5,
    "noise_multiplier": 3.0,
}


class TestEvents:
    def test_without_a_bound_that_binds_it_is_a_composition(self) -> None:
        one, two = SkellamRelease(4, 4, 100), SkellamRelease(4, 4, 50)
        assert scheduled({one: 2, two: 1}, 3) == {one: 2, two: 1}
        assert scheduled({one: 5}, 2) == {one: 2}
        assert scheduled({one: 5}, 0) == {one: 0}
        (event,) = scheduled({one: 2, two: 1}, 2)
        assert rdp_curve(event) == pytest.approx(rdp_curve(Composed(((one, 1), (two, 1)))))

    def test_no_choice_costs_more_at_any_order_where_none_is_dearest_at_all(self) -> None:
        """A large share and many small ones: the sum of small ones is less like a Gaussian."""
        shares = DiscreteGaussianSum(9, 10**4, 1, 30, 10**6)
        large = DiscreteGaussianSum(9, 10**4, 20, 1, 10**6)
        curves = rdp_curve(shares), rdp_curve(large)
        assert curves[0][2] > curves[1][2]
        assert curves[0][ORDERS[-1]] < curves[1][ORDERS[-1]]
        event = Scheduled(((shares, 2), (large, 2)), 2)
        for chosen in ([(shares, 2)], [(large, 2)], [(shares, 1), (large, 1)]):
            found = rdp_curve(composed(dict(chosen)))
            assert all(found[o] <= cost * (1 + 1e-12) for o, cost in rdp_curve(event).items())

    def test_a_release_without_noise_among_them_has_no_bound(self) -> None:
        event = Scheduled(((SkellamRelease(4, 4, 100), 9), (NonPrivateRelease(), 1)), 1)
        assert epsilon_of(event, 1e-5) == math.inf
        assert replace_one(event).parts[1][0] == NonPrivateRelease("replace-one")

    def test_its_neighbours_are_those_of_its_events(self) -> None:
        one = SkellamRelease(4, 4, 100)
        event = Scheduled(((one, 2), (SkellamRelease(4, 4, 50), 2)), 2)
        assert adjacency_of(event) == "add-or-remove"
        assert adjacency_of(replace_one(event)) == "replace-one"
        assert rdp_curve(replace_one(event))[2] > rdp_curve(event)[2]
        mixed = Scheduled(((one, 2), (SkellamRelease(4, 4, 50, "zero-out"), 2)), 2)
        with pytest.raises(AccountingError, match="adjacency-mixed"):
            rdp_curve(mixed)


def spent(manifest: Manifest, charges: int, *, name: str = "", **terms: Any) -> Account:
    account = terms.pop("account", Account(delta=manifest.budget.delta))
    for number in range(charges):
        account = account.spend(f"{name}{number:02x}", manifest, **terms)
    return account


class TestAccount:
    @pytest.mark.parametrize("charges", [1, 4, 5, 16])
    def test_an_account_agrees_with_the_statements_and_the_plan(self, charges: int) -> None:
        for manifest in (task(), task(**LOCAL), task(device_noise_multiplier=1.4)):
            account = spent(manifest, charges)
            statements = {s.unit: s.epsilon for s in lines(manifest, charges) if not s.amplified}
            for unit, epsilon in statements.items():
                assert account.epsilon(unit) == pytest.approx(epsilon, rel=1e-9)
                assert account.total(unit).stated == account.epsilon(unit)
                assert cost_of(unit, manifest, charges) == pytest.approx(epsilon, rel=1e-9)

    def test_of_different_releases_the_dearest(self) -> None:
        manifest = task()
        account = spent(manifest, 5, facts=LOUD)
        account = spent(manifest, 2, name="a", facts=QUIET, account=account)
        facts = {LOUD: 5, QUIET: 2}
        assert account.epsilon("example") == pytest.approx(headline(lines(manifest, facts)))

    def test_a_reservation_counts_as_a_charge(self) -> None:
        manifest = task()
        account = spent(manifest, 4)
        reserved = account.reserve("ff", manifest)
        assert reserved.epsilon("example") == spent(manifest, 5).epsilon("example")
        assert reserved.epsilon("example") > account.epsilon("example")
        assert reserved.charged(schedule_of(manifest)) == 5
        assert reserved.cancel("ff") == account

    def test_the_budget_holds_to_the_last_release(self) -> None:
        """What is afforded is what the total says; a part that begins anew is a participation."""
        manifest = task()
        one = cost_of("example", manifest, 4)
        account = Account(delta=1e-5, max_epsilon=one)
        account = spent(manifest, 4, account=account)
        for charge in (account.reserve, account.spend):
            with pytest.raises(BudgetError) as caught:
                charge("ff", manifest)
            assert caught.value.reason == "budget-exhausted"
        richer = msgspec.structs.replace(account, max_epsilon=cost_of("example", manifest, 8))
        assert spent(manifest, 8, account=richer).total("example").bounded <= richer.max_epsilon

    def test_two_tasks_of_one_name_are_two_schedules(self) -> None:
        """ceil(1/4) + ceil(1/4) is more than ceil(2/4)."""
        one = task()
        other = msgspec.structs.replace(one, created_at=one.created_at + 1)
        assert one.task == other.task
        account = spent(other, 1, name="a", account=spent(one, 1))
        assert account.epsilon("example") == pytest.approx(cost_of("example", task(1), 2))
        assert account.epsilon("example") > spent(one, 4).epsilon("example")
        assert account.charged(schedule_of(one)) == 1

    def test_across_tasks_participations_add_up(self) -> None:
        one, other = task(2), task(4, task="other")
        account = spent(other, 5, name="a", account=spent(one, 3))
        event = ring_release(one, QUIET, 1)
        expected = of(one, (event, 2 + 2), releases=8)
        assert account.epsilon("example") == pytest.approx(expected, rel=1e-9)
        plain = spent(task(1, task="plain"), 1, name="b", account=account)
        expected = of(one, (event, 2 + 2 + 1), releases=9)
        assert plain.epsilon("example") == pytest.approx(expected, rel=1e-9)

    def test_a_cohort_is_charged_under_one_schedule(self) -> None:
        one = task()
        other = msgspec.structs.replace(one, created_at=one.created_at + 1)
        account = Account(delta=1e-5).reserve("aa", one)
        for charge in (account.reserve, account.spend):
            with pytest.raises(BudgetError) as caught:
                charge("aa", other)
            assert caught.value.reason == "cohort-mismatch"

    def test_what_an_example_beside_it_costs_is_counted_in_full(self) -> None:
        """A task of devices alone charges an example each time."""
        devices = built(
            task="d", algorithm="fedavg", privacy="none", device_noise_multiplier=4.0,
            budget=NO_LIMIT,
        )  # fmt: skip
        alone = spent(devices, 2).total("example").bounded
        both = spent(devices, 2, name="a", account=spent(task(), 4)).total("example").bounded
        assert both > max(alone, spent(task(), 4).total("example").bounded)

    def test_totals_of_a_ledger_count_each_task_on_its_own(self) -> None:
        one, other = task(2), task(4, task="other")
        spending = [Spent(one, {QUIET: 2, LOUD: 1}), Spent(other, {QUIET: 5})]
        example, device = ledger_totals(spending)
        event = ring_release(one, QUIET, 1)
        assert example.epsilon == pytest.approx(of(one, (event, 4), releases=8), rel=1e-9)
        assert (example.unit, device.epsilon) == ("example", math.inf)

    def test_what_randomness_takes_is_that_of_all_releases(self) -> None:
        charge, _ = charges_of(task())
        heavy = msgspec.structs.replace(charge, draws=1 << 66)
        assert compose([heavy], 1e-5) < math.inf
        assert compose([heavy] * 4, 1e-5) == math.inf


class TestParts:
    def test_accounts_that_counted_apart_and_are_one_now(self) -> None:
        """Two folders of the same data, each of which began with part 0."""
        manifest = task()
        one = spent(manifest, 1, part=0)
        both = spent(manifest, 1, name="a", part=0, account=one)
        assert both.epsilon("example") == pytest.approx(cost_of("example", task(1), 2))
        apart = spent(manifest, 1, name="a", part=1, account=one)
        assert apart.epsilon("example") == pytest.approx(cost_of("example", manifest, 2))
        again = spent(manifest, 1, name="b", part=0, account=both)
        assert again.epsilon("example") == pytest.approx(cost_of("example", task(1), 3))

    def test_a_device_in_a_row_costs_what_is_planned(self) -> None:
        manifest, account = task(), Account(delta=1e-5)
        for count in range(9):
            more = charges_of(manifest, part=count % 4)
            after = account.total("example", more, manifest.task)
            account = account.spend(f"{count:02x}", manifest, part=count % 4)
            assert after == account.total("example")
            planned = cost_of("example", manifest, count + 1)
            assert after.epsilon == pytest.approx(planned, rel=1e-9)

    def test_a_charge_whose_part_is_not_known_may_be_of_any(self) -> None:
        manifest = task()
        account = spent(manifest, 1, name="a", account=spent(manifest, 1, part=2))
        assert account.epsilon("example") == pytest.approx(cost_of("example", task(1), 2))


class TestStored:
    def test_a_charge_without_a_schedule_is_written_as_before(self) -> None:
        account = spent(task(1), 1)
        written = msgspec.json.decode(account.to_json())["entries"][0]["charges"]
        assert [set(charge) for charge in written] == [
            {"unit", "l2_squared", "l1", "variance", "count", "draws", "shares", "length", "stated"}
        ] * 2

    def test_one_with_a_schedule_is_read_as_written(self) -> None:
        manifest = task(device_noise_multiplier=1.4)
        account = spent(manifest, 1, name="a", account=spent(manifest, 5, part=3))
        assert Account.from_json(account.to_json()) == account
        example, device = account.entries[0].charges
        assert (example.period, example.schedule, example.part) == (
            4,
            schedule_of(manifest),
            3,
        )
        assert (device.counter, example.counter) == (None, (schedule_of(manifest), 4))

    def test_charges_that_lack_their_schedule_count_in_full(self) -> None:
        """As a version before would have stored them, had it taken such a task."""
        account = spent(task(), 4)
        bare = tuple(
            msgspec.structs.replace(
                entry,
                charges=tuple(
                    msgspec.structs.replace(
                        charge, period=msgspec.UNSET, schedule=msgspec.UNSET, part=msgspec.UNSET
                    )
                    for charge in entry.charges
                ),
            )
            for entry in account.entries
        )
        stripped = msgspec.structs.replace(account, entries=bare)
        assert stripped.epsilon("example") == pytest.approx(cost_of("example", task(1), 4))
        more = spent(task(), 1, name="a", account=stripped)
        assert more.epsilon("example") == pytest.approx(cost_of("example", task(1), 5))

    @pytest.mark.parametrize(
        "changes",
        [
            {"period": 0},
            {"part": 4},
            {"part": -1},
            {"period": msgspec.UNSET},
            {"schedule": msgspec.UNSET},
            {"period": msgspec.UNSET, "schedule": msgspec.UNSET, "part": 0},
        ],
    )
    def test_a_schedule_that_cannot_be_is_refused(self, changes: dict[str, Any]) -> None:
        account = spent(task(), 1, part=1)
        (entry,) = account.entries
        example, device = entry.charges
        wrong: Charge = msgspec.structs.replace(example, **changes)
        entry = msgspec.structs.replace(entry, charges=(wrong, device))
        with pytest.raises(BudgetError, match="account-malformed"):
            Account.from_json(msgspec.structs.replace(account, entries=(entry,)).to_json())


def test_two_local_steps_are_two_events_of_one_contribution() -> None:
    """Rounding the number of events up instead would give a part of a contribution away."""
    manifest = task(2, **LOCAL | {"training": TrainingSpec(local_steps=3)})
    account = spent(manifest, 3)
    expected = of(manifest, (local_step(manifest), 6), releases=3, steps=3)
    assert account.epsilon("example") == pytest.approx(expected, rel=1e-9)
