"""Every release charges every unit; a total over tasks is infinite or right, and says why."""

from __future__ import annotations

import gzip
import math
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dp.accounting.budget import UNITS, Account, Charge, charges_of, completed, without_noise
from dp.accounting.events import (
    Composed,
    DiscreteGaussianSum,
    NonPrivateRelease,
    PoissonSampled,
    SkellamRelease,
    replace_one,
)
from dp.accounting.statements import epsilon_of, fewest, guaranteed_variance
from dp.contracts import BudgetSpec, TrainingSpec
from dp.errors import BudgetError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.verification import verify_ledger
from dp.report.totals import together
from secagg.manifest import Manifest
from tests.kits.tasks import VERIFIER, built, ledger, served, statistics

STORED = Path(__file__).parents[3] / "vectors" / "stored-0453a63"
NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=4)
NONE = built(task="n", algorithm="fedavg", privacy="none", budget=NO_LIMIT)
C = built(task="c", budget=NO_LIMIT, examples_max=3)
B = built(
    task="b", algorithm="fedavg", privacy="none", device_noise_multiplier=1.4, budget=NO_LIMIT
)
A = built(task="a", algorithm="fedavg", noise_multiplier=3.0, budget=NO_LIMIT)
SUMS = built(statistics(("x", 4, 1.0), ("y", 9, 2.0), device_noise_multiplier=4.0, budget=NO_LIMIT))


def spent(*manifests: Manifest) -> Account:
    account = Account(delta=1e-5)
    for number, manifest in enumerate(manifests):
        account = account.spend(f"{number:02x}", manifest)
    return account


def test_a_release_without_noise_has_no_finite_cost() -> None:
    event = NonPrivateRelease()
    assert epsilon_of(event, 1e-5) == epsilon_of(event, 1e-5, -90.0) == math.inf
    assert epsilon_of(Composed(((SkellamRelease(1, 1, 10**9), 1), (event, 1))), 1e-5) == math.inf
    assert epsilon_of(Composed(((SkellamRelease(1, 1, 10**9), 1), (event, 0))), 1e-5) < 1
    assert replace_one(event) == NonPrivateRelease("replace-one")
    with pytest.raises(Exception, match="event-unknown"):
        epsilon_of(PoissonSampled(0.5, event), 1e-5)


@pytest.mark.parametrize("manifest", [A, B, C, NONE, SUMS])
def test_every_release_charges_each_unit_once(manifest: Manifest) -> None:
    assert [charge.unit for charge in charges_of(manifest)] == list(UNITS)


@pytest.mark.parametrize("mechanism", ["skellam", "discrete-gaussian"])
def test_a_task_of_devices_charges_an_example_twice_the_bound(mechanism: str) -> None:
    manifest = built(
        algorithm="fedavg",
        privacy="none",
        device_noise_multiplier=1.4,
        mechanism=mechanism,
        budget=NO_LIMIT,
    )
    example, device = (charge.event() for charge in charges_of(manifest))
    assert isinstance(device, SkellamRelease | DiscreteGaussianSum)
    assert isinstance(example, SkellamRelease | DiscreteGaussianSum)
    assert (example.l2_squared, example.l1) == (4 * device.l2_squared, 2 * device.l1)
    assert example.adjacency == "add-or-remove"  # it composes with what protects examples
    assert [charge.stated for charge in charges_of(manifest)] == [False, True]


def test_a_task_of_examples_charges_a_device_all_that_it_may_sum() -> None:
    example, device = charges_of(C)
    assert (example.stated, device.stated) == (True, False)
    assert int(device.l2_squared) == 9 * int(example.l2_squared)
    assert int(device.l1) == 3 * int(example.l1)
    assert int(device.variance) == guaranteed_variance(C, fewest(C))


def test_local_steps_bound_no_device() -> None:
    """A device's Poisson batch has no cap: its noise is for one example alone."""
    example, device = charges_of(A)
    assert example.stated
    assert device == without_noise("device")
    both = built(
        algorithm="fedavg",
        noise_multiplier=3.0,
        device_noise_multiplier=2.0,
        training=TrainingSpec(local_steps=2),
        budget=NO_LIMIT,
    )
    example, device = charges_of(both)
    assert (example.count, example.stated, device.stated) == (2, True, True)
    assert int(device.l2_squared) == sum(segment.clip_units**2 for segment in both.segments)


def test_a_total_names_the_tasks_that_leave_it_without_bound() -> None:
    account = spent(C, NONE, C, B, NONE)
    example = account.total("example")
    assert (example.epsilon, example.unbounded) == (math.inf, ("n",))
    assert example.bounded == spent(C, C, B).epsilon("example")
    assert example.stated == spent(C, C).epsilon("example")
    assert example.derived == ("b",)
    device = spent(C, A, B).total("device")
    assert (device.unbounded, device.derived) == (("a",), ("c",))
    assert device.stated == spent(B).epsilon("device")


def test_a_task_of_devices_counts_in_the_total_of_an_example() -> None:
    """Exact, for Gaussian noise: 18.09 for four releases of each at z = 1.4."""
    demo = msgspec.structs.replace(built(task="demo", budget=NO_LIMIT))
    example = spent(*[demo] * 4, *[B] * 4).epsilon("example")
    assert 18.09 < example < 20.2
    assert spent(*[demo] * 4).epsilon("example") < 7.2


def test_a_limit_is_for_every_unit_that_a_task_states() -> None:
    """Also for an example of an earlier task, when a task of devices follows."""
    limit = spent(C).epsilon("example")
    account = Account(delta=1e-5, max_epsilon=limit * 1.001).spend("00", C)
    assert spent(B).epsilon("device") < limit * 1.001
    with pytest.raises(BudgetError, match="budget-exhausted"):
        account.spend("01", B)
    beside = account.spend("01", NONE)  # which states nothing; the limit goes on for the others
    assert beside.total("example").bounded == limit
    with pytest.raises(BudgetError, match="budget-exhausted"):
        beside.spend("02", C)


def test_a_tasks_own_budget_is_about_what_it_states() -> None:
    device, example = (spent(B).epsilon(unit) for unit in ("device", "example"))
    assert example > device
    Account(delta=1e-5, max_epsilon=device).spend("00", B)


def test_charges_of_earlier_versions_are_judged_by_the_new_rules() -> None:
    """They stored the charges of the units that a task states."""

    def stored(*charges: Charge) -> Account:
        rows = [
            {key: row for key, row in msgspec.to_builtins(charge).items() if key != "stated"}
            for charge in charges
        ]
        entry = {"cohort": "aa", "task": "t", "state": "spent", "charges": rows}
        return Account.from_json(msgspec.json.encode({"delta": 1e-5, "entries": [entry]}))

    bare = stored()
    assert [bare.total(unit).unbounded for unit in UNITS] == [("t",)] * 2
    example, device = charges_of(B)
    of_devices = stored(device)
    assert of_devices.epsilon("device") == spent(B).epsilon("device")
    assert of_devices.total("example") == msgspec.structs.replace(
        spent(B).total("example"), derived=("t",), stored_before=("t",)
    )
    assert completed((device,)) == (device, example)
    of_examples = stored(charges_of(C)[0])
    assert of_examples.epsilon("example") == spent(C).epsilon("example")
    device = of_examples.total("device")  # how many it may sum is not stored
    assert device.unbounded == device.stored_before == ("t",)
    assert "adds no noise" not in together(device)
    assert "Task 't' comes from an earlier version" in together(device)


def test_a_stored_service_account_is_read(tmp_path: Path) -> None:
    file = tmp_path / "secagg.db"
    file.write_bytes(gzip.decompress((STORED / "service" / "secagg.db.gz").read_bytes()))
    ((text,),) = sqlite3.connect(file).execute("select account from tasks").fetchall()
    account = Account.from_json(text.encode())
    assert [(entry.state, entry.charges) for entry in account.entries] == [
        ("spent", ()),
        ("reserved", ()),
    ]
    assert [account.total(unit).unbounded for unit in UNITS] == [("statistics",)] * 2


def together_of(*manifests: Manifest) -> dict[str, str]:
    account = spent(*manifests)
    return {unit: together(account.total(unit)) for unit in UNITS}


def test_the_words_of_a_total() -> None:
    assert together_of(C)["example"].startswith(
        "One example whose data served in every task: epsilon "
    )
    mixed = together_of(C, NONE)["example"]
    assert "every task: epsilon infinite at delta 1e-05. Task 'n' adds no noise" in mixed
    assert "All other tasks together: epsilon " in mixed
    assert "other tasks" not in together_of(NONE)["example"]
    derived = together_of(C, B)["example"]
    assert "Task 'b' makes no statement about examples" in derived
    assert "The tasks that make one: epsilon " in derived
    many = [msgspec.structs.replace(NONE, task=f"n{k}") for k in range(10)]
    assert "Tasks 'n0', 'n1'" in together_of(*many)["device"]
    assert "and 2 more add no noise" in together_of(*many)["device"]


def two(*parts: tuple[Manifest, Any]) -> LedgerBuilder:
    builder = LedgerBuilder(parts[0][0].ledger_verifier.split("+")[0], [])
    for manifest, survivors in parts:
        for record in ledger(manifest, survivors)._entries:
            builder.append(record)
    return builder


def test_a_refused_task_with_releases_is_without_bound() -> None:
    assert C.noise is not None
    weak = msgspec.structs.replace(
        C,
        task="weak",
        noise=msgspec.structs.replace(C.noise, share_variance=C.noise.share_variance - 1),
    )
    result = verify_ledger(served(two((C, (4,)), (weak, (4,)))).get, VERIFIER)
    assert not result.verified
    assert [total.unbounded for total in result.totals] == [("weak",)] * 2
    assert result.epsilon == math.inf
    result = verify_ledger(served(two((weak, (4,)))).get, VERIFIER)
    assert [total.unbounded for total in result.totals] == [("weak",)] * 2


def test_no_total_of_a_ledger_is_below_a_line_of_one_of_its_tasks() -> None:
    """A task that states little at a large delta must not make the others look cheaper."""
    costly = built(task="costly", budget=BudgetSpec(max_epsilon=None, delta=1e-8, releases_max=4))
    cheap = built(
        task="cheap",
        noise_multiplier=40.0,
        budget=BudgetSpec(max_epsilon=None, delta=2e-4, releases_max=4),
    )
    result = verify_ledger(served(two((costly, (4, 4, 4, 4)), (cheap, (4,)))).get, VERIFIER)
    (line,) = (line for line in result.tasks[0].lines if not line.amplified)
    example = next(total for total in result.totals if total.unit == "example")
    assert example.delta == line.delta == 1e-8
    assert result.epsilon == example.epsilon >= line.epsilon
