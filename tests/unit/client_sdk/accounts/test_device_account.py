"""The device's own account: durable, never refunded, one charge per cohort."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client_sdk.accounts.device_account import DeviceAccount, Found
from client_sdk.errors import StateError
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.checkin import _no_finite_total
from client_sdk.rounds.device import RunningDevice
from dp.accounting.budget import UNITS, cost_of
from dp.accounting.figures import upper
from dp.accounting.statements import headline, lines
from dp.errors import BudgetError
from tests.kits.device import account_in, journal_in, make_manifest, sum_spec
from tests.kits.tasks import built

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
MANIFEST = make_manifest(sum_spec(), VERIFIER)
A, B = b"a" * 32, b"b" * 32


def test_a_charge_is_there_after_a_restart(tmp_path: Path) -> None:
    account_in(tmp_path).debit(MANIFEST, A, "c")
    again = account_in(tmp_path)
    assert again.charges("stats") == 1
    assert again.epsilon("stats") == headline(lines(MANIFEST, 1))
    example, device = again.totals()
    assert device.epsilon == device.stated == again.epsilon("stats")
    assert example.epsilon == cost_of("example", MANIFEST, 1) > device.epsilon
    assert (example.derived, example.unbounded) == (("stats",), ())


def test_a_restarted_device_is_not_charged_twice_for_one_cohort(tmp_path: Path) -> None:
    for _ in range(3):
        account_in(tmp_path).debit(MANIFEST, A, "c")
    assert account_in(tmp_path).charges("stats") == 1
    account_in(tmp_path).debit(MANIFEST, B, "c")
    assert account_in(tmp_path).charges("stats") == 2


def test_all_charges_compose_and_the_ledgers_figure_is_ours(tmp_path: Path) -> None:
    other = make_manifest(sum_spec(task="other"), VERIFIER)
    account = account_in(tmp_path)
    account.debit(MANIFEST, A, "c")
    account.debit(MANIFEST, B, "d")
    account.debit(other, b"c" * 32, "e")
    assert account.epsilon("stats") == headline(lines(MANIFEST, 2))
    assert account.epsilon("other") == headline(lines(other, 1))
    assert account.epsilon("unknown") == 0.0
    for unit, spent in zip(UNITS, account.totals(), strict=True):
        assert spent.epsilon == pytest.approx(cost_of(unit, MANIFEST, 3), rel=1e-6)
        task, every = account.after(other, unit)
        assert task.epsilon == pytest.approx(cost_of(unit, other, 2), rel=1e-9)
        assert every.epsilon == pytest.approx(cost_of(unit, MANIFEST, 4), rel=1e-6)


def test_a_task_without_noise_leaves_no_finite_total_and_a_total_of_the_others(
    tmp_path: Path,
) -> None:
    plain = make_manifest(sum_spec(task="bare", device_noise_multiplier=0.0), VERIFIER)
    account = account_in(tmp_path)
    assert account.totals() == ()
    account.debit(plain, A, "c")
    assert (account.charges("bare"), account.epsilon("bare")) == (1, math.inf)
    account.debit(MANIFEST, B, "d")
    for unit, spent in zip(UNITS, account_in(tmp_path).totals(), strict=True):
        assert (spent.epsilon, spent.unbounded) == (math.inf, ("bare",))
        assert spent.bounded == cost_of(unit, MANIFEST, 1)
    assert account.epsilon("stats") == headline(lines(MANIFEST, 1))


def test_an_app_that_counts_devices_is_told_of_tasks_in_which_they_have_no_bound(
    tmp_path: Path,
) -> None:
    account = account_in(tmp_path)
    account.debit(built(task="steps", algorithm="fedavg", noise_multiplier=3.0), A, "c")

    def told(policy: PrivacyPolicy) -> dict[str, object]:
        device = cast("RunningDevice", SimpleNamespace(account=account, policy=policy))
        return _no_finite_total(device, MANIFEST)

    assert told(PrivacyPolicy()) == {}
    found = told(PrivacyPolicy(units=frozenset(UNITS)))
    assert found["no_finite_total"] == "steps"
    after = [account.after(MANIFEST, unit)[1].bounded for unit in UNITS]
    assert found["others"] == upper(max(after))


def test_a_task_may_charge_no_more_than_its_releases(tmp_path: Path) -> None:
    account = account_in(tmp_path)
    for number in range(MANIFEST.budget.releases_max):
        account.debit(MANIFEST, bytes((number,)) * 32, "c")
    with pytest.raises(BudgetError, match="releases-exhausted"):
        account.debit(MANIFEST, A, "c")


def test_charges_that_were_given_back_take_no_room_from_those_of_the_ledger(
    tmp_path: Path,
) -> None:
    """The service gives a charge back and makes another release; the device keeps what it paid."""
    account, most = account_in(tmp_path), MANIFEST.budget.releases_max
    for number in range(most):
        account.debit(MANIFEST, bytes((number,)) * 32, "c")
    shown = [bytes((number,)) * 32 for number in range(1, most + 1)]
    found = [Found(ctx=ctx, manifest=MANIFEST, models=()) for ctx in shown]
    assert account.restore(found) == 1
    assert account_in(tmp_path).charges("stats") == most + 1
    more = Found(ctx=A, manifest=MANIFEST, models=())
    with pytest.raises(BudgetError, match="releases-exhausted"):
        account.restore([*found, more])
    assert account_in(tmp_path).charges("stats") == most + 1


def test_a_contribution_remembers_the_cohort_that_it_served(tmp_path: Path) -> None:
    account = account_in(tmp_path)
    assert account.served("c") is None
    account.debit(MANIFEST, A, "c")
    assert account_in(tmp_path).served("c") == A
    assert account_in(tmp_path).served("d") is None


PLAIN = make_manifest(sum_spec(device_noise_multiplier=0.0), VERIFIER)
M, N = b"m" * 32, b"n" * 32


def test_a_model_that_a_bare_vector_was_given_from_is_remembered_across_restarts(
    tmp_path: Path,
) -> None:
    """By the model's digest: another task or manifest may ask for the same values."""
    account_in(tmp_path).debit(PLAIN, A, "c", M)
    other = make_manifest(sum_spec(task="other", device_noise_multiplier=0.0), VERIFIER)
    assert account_in(tmp_path).given(M) == A
    assert account_in(tmp_path).given(N) is None
    account_in(tmp_path).debit(other, B, "d", N)
    assert [account_in(tmp_path).given(model) for model in (M, N)] == [A, B]


def test_noise_in_the_ring_leaves_a_model_ungiven(tmp_path: Path) -> None:
    account_in(tmp_path).debit(MANIFEST, A, "c", M)
    assert account_in(tmp_path).given(M) is None


def test_charge_contribution_and_model_are_one_write(tmp_path: Path) -> None:
    """A kill between two writes would leave a charge that forgot what it was for."""
    journal = journal_in(tmp_path)
    saved: list[str] = []
    save = journal.save_blob
    journal.save_blob = lambda name, content: (saved.append(name), save(name, content))[1]  # type: ignore[method-assign]
    account = DeviceAccount(journal, 1e-5)
    account.debit(PLAIN, A, "c", M)
    assert saved == ["account"]
    account.debit(PLAIN, A, "c", M)
    assert saved == ["account"]


def test_a_charge_of_before_that_named_no_model_gets_it_when_it_is_asked_again(
    tmp_path: Path,
) -> None:
    account_in(tmp_path).debit(PLAIN, A, "c")
    account_in(tmp_path).debit(PLAIN, A, "c", M)
    again = account_in(tmp_path)
    assert (again.given(M), again.charges("stats")) == (A, 1)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"{}", b'{"account":{"delta":"x"}}'])
def test_a_damaged_account_stops_the_device(tmp_path: Path, content: bytes) -> None:
    journal_in(tmp_path).save_blob("account", content)
    with pytest.raises(StateError, match="state-damaged"):
        account_in(tmp_path)


def test_charges_that_were_found_again_say_which_models_were_given(tmp_path: Path) -> None:
    found = [
        Found(ctx=A, manifest=PLAIN, models=(M,)),
        Found(ctx=B, manifest=MANIFEST, models=(N,)),
    ]
    account_in(tmp_path).restore(found)
    assert [account_in(tmp_path).given(model) for model in (M, N)] == [A, None]


def test_a_charge_that_the_ledger_showed_first_spends_the_contribution_too(tmp_path: Path) -> None:
    """The device stood in the masking set, stopped before its debit, and recovered meanwhile."""
    account = account_in(tmp_path)
    account.restore([Found(ctx=A, manifest=MANIFEST, models=())])
    account.debit(MANIFEST, A, "c")
    assert account_in(tmp_path).served("c") == A
    assert account_in(tmp_path).charges("stats") == 1
