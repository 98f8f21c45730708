"""Adjacency: every cost names its neighbours, they never mix, and replacing moves a sum twice."""

from __future__ import annotations

import json
import re
from typing import get_args

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant
from typer.testing import CliRunner

from dp.accounting.budget import charges_of
from dp.accounting.events import (
    Adjacency,
    Composed,
    DiscreteGaussianRelease,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    PoissonReplaced,
    PoissonSampled,
    SkellamRelease,
    adjacency_of,
    replace_one,
)
from dp.accounting.figures import shown_up
from dp.accounting.statements import ADJACENCY, epsilon_of, lines
from dp.contracts import BudgetSpec
from dp.errors import AccountingError
from dp.ledger.verification import verify_ledger
from dp.planning.epsilon import plan_epsilon
from dp.planning.gaussian import exact_epsilon, gaussian_epsilon, pld_epsilon, rdp_epsilon
from dp.report import report_data
from secagg_cli.audit.report import render
from secagg_cli.main import app
from tests.kits.tasks import VERIFIER, built, ledger, served

RELEASES: tuple[Event, ...] = (
    SkellamRelease(100, 50, 400),
    DiscreteGaussianSum(100, 50, 40, 10, 16),
    DiscreteGaussianRelease(2.0),
    GaussianRelease(2.0),
)


@pytest.mark.parametrize("event", RELEASES)
def test_replacing_costs_what_twice_the_sensitivity_does(event: Event) -> None:
    replaced = replace_one(event)
    assert (adjacency_of(event), adjacency_of(replaced)) == ("add-or-remove", "replace-one")
    assert epsilon_of(replaced, 1e-5) > 1.9 * epsilon_of(event, 1e-5)
    assert replace_one(replaced) == replaced


def test_twice_the_sensitivity_is_four_times_its_square_and_twice_its_l1() -> None:
    assert replace_one(SkellamRelease(25, 9, 400)) == SkellamRelease(100, 18, 400, "replace-one")
    assert replace_one(DiscreteGaussianSum(25, 9, 40, 10, 16)) == DiscreteGaussianSum(
        100, 18, 40, 10, 16, "replace-one"
    )
    assert replace_one(GaussianRelease(3.0)) == GaussianRelease(1.5, "replace-one")
    whole = Composed(((SkellamRelease(25, 9, 400), 3),))
    assert replace_one(whole) == Composed(((SkellamRelease(100, 18, 400, "replace-one"), 3),))


def test_costs_under_different_adjacencies_do_not_compose() -> None:
    """Their sum would be a statement under neither."""
    mixed = Composed(((SkellamRelease(25, 9, 400), 1), (SkellamRelease(25, 9, 400, "zero-out"), 1)))
    with pytest.raises(AccountingError) as caught:
        epsilon_of(mixed, 1e-5)
    assert caught.value.reason == "adjacency-mixed"
    unused = Composed(((mixed.parts[0][0], 1), (mixed.parts[1][0], 0)))
    assert adjacency_of(unused) == "add-or-remove"
    assert adjacency_of(Composed(())) is None


def test_sampling_of_a_release_that_is_already_an_exchange_is_accounted_by_nobody() -> None:
    """Half of what an exchange moves bounds no single record."""
    for attempt in (
        lambda: epsilon_of(PoissonSampled(0.1, GaussianRelease(2.0, "replace-one")), 1e-5),
        lambda: epsilon_of(PoissonReplaced(0.1, GaussianRelease(2.0, "replace-one")), 1e-5),
        lambda: rdp_epsilon(2.0, 1, 1e-5, 0.1, "replace-one"),
    ):
        with pytest.raises(AccountingError) as caught:
            attempt()
        assert caught.value.reason == "adjacency-unaccounted"


def test_the_library_does_not_double_and_ours_does() -> None:
    """google/differential-privacy issue 378: the Renyi accountant ignores the relation."""
    found = []
    for relation in ("ADD_OR_REMOVE_ONE", "REPLACE_ONE"):
        accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation[relation])
        found.append(accountant.compose(dp_accounting.GaussianDpEvent(1.0)).get_epsilon(1e-5))
    truth = exact_epsilon(1.0, 1, 1e-5, "replace-one")
    assert found[0] == found[1]
    assert found[1] < 0.5 * truth  # the violation: less than half of what it costs
    assert truth == exact_epsilon(0.5, 1, 1e-5)
    ours = rdp_epsilon(1.0, 1, 1e-5, adjacency="replace-one")
    assert truth <= pld_epsilon(1.0, 1, 1e-5, adjacency="replace-one") <= ours


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_sampled_gaussians_under_replace_one_cost_between_one_clip_and_all(rate: float) -> None:
    one, name = gaussian_epsilon(1.5, 20, 1e-6, rate)
    both, replaced = gaussian_epsilon(1.5, 20, 1e-6, rate, "replace-one")
    assert name == replaced == "pld/dp-accounting"
    assert one < both < exact_epsilon(1.5, 20, 1e-6, "replace-one")


@pytest.mark.parametrize("mechanism", ["gaussian", "skellam", "discrete-gaussian"])
def test_plans_say_what_replacing_costs(mechanism: str) -> None:
    once, _ = plan_epsilon(2.0, 4, 1e-5, mechanism=mechanism)
    replaced, _ = plan_epsilon(2.0, 4, 1e-5, mechanism=mechanism, adjacency="replace-one")
    halved, _ = plan_epsilon(1.0, 4, 1e-5, mechanism=mechanism)
    assert replaced == pytest.approx(halved, rel=1e-3)
    assert replaced > 1.9 * once
    zeroed, _ = plan_epsilon(2.0, 4, 1e-5, mechanism=mechanism, adjacency="zero-out")
    assert zeroed == once


def test_an_unknown_adjacency_is_refused() -> None:
    with pytest.raises(AccountingError) as caught:
        plan_epsilon(1.0, 1, 1e-5, adjacency="bounded")  # type: ignore[arg-type]
    assert caught.value.reason == "adjacency-unknown"


def test_every_line_and_every_charge_names_its_neighbours() -> None:
    both = built(
        algorithm="fedavg",
        device_noise_multiplier=2.0,
        noise_multiplier=1.4,
        budget=BudgetSpec(max_epsilon=None),
    )
    for manifest in (built(), both):
        for line in lines(manifest, 2):
            assert line.adjacency == ADJACENCY[line.unit]
            assert line.adjacency in get_args(Adjacency)
        for charge in charges_of(manifest):
            assert charge.event().adjacency == ADJACENCY[charge.unit]


def test_lines_under_replace_one_are_never_amplified_and_cost_about_twice() -> None:
    manifest = built(
        report_slot_s=60.0,
        device_noise_multiplier=1.0,
        noise_multiplier=1.4,
        examples_max=16,
        budget=BudgetSpec(max_epsilon=None),
    )
    declared, replaced = lines(manifest, 1), lines(manifest, 1, replaced=True)
    assert [line.amplified for line in declared] == [False, True, False]
    assert [(line.mode, line.adjacency) for line in replaced] == [
        ("C", "replace-one"),
        ("B", "replace-one"),
    ]
    for line in replaced:
        (same,) = (d for d in declared if d.mode == line.mode and not d.amplified)
        assert 1.9 * same.epsilon < line.epsilon < 4 * same.epsilon
        alike = line.adversary.replace("another example", "one example more")
        assert (line.unit, alike, line.delta) == (same.unit, same.adversary, same.delta)
    local = built(algorithm="fedavg", noise_multiplier=4.0, budget=BudgetSpec(max_epsilon=None))
    (line,) = lines(local, 1, replaced=True)
    assert line.epsilon > 1.9 * lines(local, 1)[0].epsilon
    assert lines(manifest, 0, replaced=True)[0].epsilon == 0.0


def test_the_report_says_what_replacing_costs() -> None:
    manifest = built()
    audit = verify_ledger(served(ledger(manifest, (4, 5))).get, VERIFIER)
    (task,) = report_data(audit).tasks
    assert [line.adjacency for line in task.replaced] == ["replace-one"]
    assert task.replaced[0].epsilon > 1.9 * task.lines[0].epsilon
    figures = [figure.name for figure in report_data(audit).figures]
    assert "epsilon under replace-one" in figures


def test_the_command_names_the_adjacency() -> None:
    command = ["plan", "privacy", "--noise-multiplier", "1", "--rounds", "1", "--delta", "1e-5"]
    found = {}
    for adjacency in ("add-or-remove", "replace-one"):
        result = CliRunner().invoke(app, [*command, "--adjacency", adjacency, "--format", "json"])
        found[adjacency] = json.loads(result.stdout)
        assert found[adjacency]["adjacency"] == adjacency
    assert found["add-or-remove"]["epsilon"] == pytest.approx(4.3772, abs=1e-4)
    assert found["replace-one"]["epsilon"] == pytest.approx(9.9973, abs=1e-4)


def test_the_page_says_it_and_shows_infinity_as_a_word() -> None:
    plain = verify_ledger(served(ledger(built(), (4, 5))).get, VERIFIER)
    page = render(report_data(plain))
    cost = report_data(plain).tasks[0].replaced[0].epsilon
    assert f"one example (distributed noise): epsilon {shown_up(cost, 3)}." in page
    loud = built(noise_multiplier=0.7, budget=BudgetSpec(max_epsilon=None))
    page = render(report_data(verify_ledger(served(ledger(loud, (4, 4, 4, 4))).get, VERIFIER)))
    assert "epsilon infinite" in page
    assert not re.search(r"\binf\b|\bnan\b", page)
