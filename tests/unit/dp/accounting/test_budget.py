"""The account: charged first, never refunded."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest

from dp.accounting.budget import UNITS, Account, Entry, charges_of
from dp.accounting.events import (
    Composed,
)
from dp.accounting.statements import ReleaseFacts, epsilon_of, headline, lines
from dp.contracts import BudgetSpec
from dp.errors import BudgetError
from tests.kits.said import Case, refused
from tests.kits.tasks import built

NO_LIMIT = BudgetSpec(max_epsilon=None)


def account(limit: float | None = 8.0) -> Account:
    return Account(delta=1e-5, max_epsilon=limit)


def test_account_and_lines_agree() -> None:
    manifest = built()
    book = account()
    for number, survivors in enumerate((4, 6, 5), 1):
        book = book.spend(f"{number:02x}", manifest, ReleaseFacts(survivors=survivors))
    facts = [ReleaseFacts(survivors=count) for count in (4, 6, 5)]
    assert book.epsilon("example") == pytest.approx(headline(lines(manifest, facts)), rel=1e-9)
    assert book.total("example").stated == book.epsilon("example")


def test_a_charge_is_made_once_however_often_it_is_asked_for() -> None:
    manifest = built()
    once = account().spend("aa", manifest)
    assert once.spend("aa", manifest) is once
    assert once.reserve("aa", manifest) is once
    assert len(once.entries) == 1


def test_a_reservation_counts_fully_until_it_is_spent() -> None:
    manifest = built()
    reserved = account().reserve("aa", manifest)
    assert reserved.entry("aa").state == "reserved"
    assert reserved.epsilon("example") == account().spend("aa", manifest).epsilon("example")
    spent = reserved.spend("aa", manifest, ReleaseFacts(survivors=6))
    assert spent.entry("aa").state == "spent"
    assert 0 < spent.epsilon("example") < reserved.epsilon("example")


def test_what_is_spent_is_never_refunded() -> None:
    manifest = built()
    spent = account().spend("aa", manifest)
    with pytest.raises(BudgetError) as caught:
        spent.cancel("aa")
    assert caught.value.reason == "charge-final"
    assert account().reserve("bb", manifest).cancel("bb") == account()
    assert account().cancel("unknown") == account()


def test_the_next_release_beyond_the_budget_is_refused_before_it_happens() -> None:
    manifest = built(budget=BudgetSpec(max_epsilon=None, releases_max=20))
    affordable = next(n for n in range(20) if headline(lines(manifest, n + 1)) > 5.0)
    book = account(5.0)
    for number in range(affordable):
        book = book.reserve(f"{number:02x}", manifest)
    assert book.epsilon("example") <= 5.0
    for charge in (book.reserve, book.spend):
        with pytest.raises(BudgetError) as caught:
            charge("ff", manifest)
        assert caught.value.reason == "budget-exhausted"
    # Reserved already: it can still be spent.
    assert book.spend("00", manifest).entry("00").state == "spent"


def test_no_more_releases_than_the_task_may_make() -> None:
    manifest, book = built(), account(None)
    for number in range(4):
        book = book.spend(f"{number}", manifest)
    with pytest.raises(BudgetError) as caught:
        book.spend("4", manifest)
    assert caught.value.reason == "releases-exhausted"


def test_a_device_composes_over_all_its_tasks() -> None:
    first, second = built(), built(task="other", algorithm="fedavg", noise_multiplier=2.0)
    book = account(None).spend("aa", first).spend("bb", second)
    alone = account(None).spend("aa", first)
    together = book.epsilon("example")
    assert together > alone.epsilon("example")
    # Composition of curves, not a sum of epsilons.
    assert together < alone.epsilon("example") + account(None).spend("bb", second).epsilon(
        "example"
    )


def test_units_are_separate() -> None:
    manifest = built(device_noise_multiplier=0.9, examples_max=16, budget=NO_LIMIT)
    book = account(None).spend("aa", manifest)
    assert book.epsilon("device") > book.epsilon("example") > 0
    with pytest.raises(BudgetError):
        account(book.epsilon("device") * 0.9).spend("aa", manifest)


def test_a_cohort_belongs_to_one_task() -> None:
    book = account().spend("aa", built())
    with pytest.raises(BudgetError) as caught:
        book.spend("aa", built(task="other"))
    assert caught.value.reason == "cohort-mismatch"


def test_a_task_without_privacy_charges_releases_only() -> None:
    manifest = built(algorithm="fedavg", privacy="none")
    book = account().spend("aa", manifest)
    assert [book.epsilon(unit) for unit in UNITS] == [math.inf] * 2
    assert len(book.entries) == 1


def test_account_survives_a_restart_bit_by_bit() -> None:
    book = account().spend("aa", built()).reserve("bb", built())
    assert Account.from_json(book.to_json()) == book


ENTRY = b'{"cohort": "aa", "task": "t", "state": "%s", "charges": [%s]}'
CHARGE = (
    b'{"unit": "example", "l2_squared": "%s", "l1": "1", "variance": "1", "count": 1, "draws": 1}'
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b'{"delta": "x"}',
        b'{"delta": 1e-5, "entries": [%s]}' % (ENTRY % (b"lost", b"")),
        b'{"delta": 1e-5, "entries": [%s]}' % (ENTRY % (b"spent", CHARGE % b"many")),
        b"\xff",
    ],
)
def test_a_damaged_account_is_an_error_never_an_empty_one(data: bytes) -> None:
    with pytest.raises(BudgetError) as caught:
        Account.from_json(data)
    assert caught.value.reason == "account-malformed"
    whole = b'{"delta": 1e-5, "entries": [%s]}' % (ENTRY % (b"spent", CHARGE % b"9"))
    assert Account.from_json(whole).epsilon("example") > 0


def test_every_drawn_coordinate_takes_its_part_of_delta() -> None:
    charge = charges_of(built())[0]
    many = msgspec.structs.replace(charge, draws=1 << 60)
    entry = Entry(cohort="aa", task="t", state="spent", charges=(many, many))
    book = Account(delta=1e-5, entries=(entry,))
    event = Composed(((charge.event(), 2),))
    assert book.epsilon("example") == epsilon_of(event, 1e-5, -90 + 61)
    assert book.epsilon("example") > epsilon_of(event, 1e-5, -90 + 60)


def test_charges_of_devices_are_between_zeros_and_data() -> None:
    for mechanism in ("skellam", "discrete-gaussian"):
        manifest = built(
            device_noise_multiplier=1.0, examples_max=4, mechanism=mechanism, budget=NO_LIMIT
        )
        example, device = charges_of(manifest)
        assert (example.event().adjacency, device.event().adjacency) == (
            "add-or-remove",
            "zero-out",
        )


def test_an_account_is_read_strictly() -> None:
    data = account().spend("aa", built()).to_json()
    assert Account.from_json(data).entry("aa") is not None
    for loose in (
        data.replace(b'"count":1', b'"count":"1"'),
        data.replace(b'"delta":1e-5', b'"delta":"1e-5"').replace(
            b'"delta":0.00001', b'"delta":"0.00001"'
        ),
        data.replace(b'"variance":"', b'"variance":"x'),
    ):
        assert loose != data
        with pytest.raises(BudgetError, match="account-malformed"):
            Account.from_json(loose)


def spent(epsilon: float | None, releases_max: int = 4) -> Callable[[], object]:
    """A second release of a task, with a budget for one."""
    manifest = built(budget=BudgetSpec(max_epsilon=None, releases_max=releases_max))

    def call() -> object:
        return Account(delta=1e-5, max_epsilon=epsilon).spend("a", manifest).reserve("b", manifest)

    return call


def another_task() -> object:
    account = Account(delta=1e-5).reserve("a", built())
    return account.spend("a", built(task="other"))


REFUSED = {
    "releases that are used up": Case(spent(None, 1), "releases-exhausted", "at most 1", 2),
    "a cohort of another task": Case(another_task, "cohort-mismatch", "demo", "other"),
    "a refund": Case(
        lambda: Account(delta=1e-5).spend("a", built()).cancel("a"), "charge-final", None, "a"
    ),
    "an account of no JSON": Case(lambda: Account.from_json(b"{"), "account-malformed", None, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], BudgetError)


def test_a_budget_that_is_used_up_says_what_the_next_release_would_cost() -> None:
    manifest = built(budget=NO_LIMIT)
    twice = Account(delta=1e-5).spend("a", manifest).spend("b", manifest).epsilon("example")
    with pytest.raises(BudgetError) as caught:
        spent(math.nextafter(twice, 0))()
    error = caught.value
    assert (error.reason, error.found) == ("budget-exhausted", 4.4314)
    assert error.expected == f"epsilon <= {math.nextafter(twice, 0)!r}"
    assert 4.43145 - 1e-4 < twice < 4.4314  # what is nearer would be lower
    assert spent(twice)() is not None  # to the last
