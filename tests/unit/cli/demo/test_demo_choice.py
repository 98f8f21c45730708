"""``secagg demo --algorithm NAME``: names come from the registry, refusals from the validator."""

from __future__ import annotations

from typing import get_args

import pytest
from typer.testing import CliRunner

from dp.contracts import ALGORITHMS
from dp.contracts.algorithms.fedavg import FedAvg
from secagg.manifest import AdapterKind
from secagg_cli.demo.choice import algorithm_names, form_names, names, resolve
from secagg_cli.demo.kills import plan_kills
from secagg_cli.demo.spec import DemoOptions, task_spec
from secagg_cli.main import app
from secagg_cli.models.presets import task_terms
from secagg_cli.output import CommandError
from tests.kits.tiny_training import tiny

OPTIONS = DemoOptions("tiny", clients=6, rounds=4, drop=0.3, device_noise=0.0, folder=None)


def test_every_algorithm_that_trains_and_every_form_of_lora_has_a_name() -> None:
    assert set(algorithm_names()) == ALGORITHMS.keys() - {"sum", "evaluation"}
    assert form_names() == get_args(AdapterKind)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_every_name_has_a_privacy_mode_of_its_own(name: str, model: str) -> None:
    chosen = resolve(name, None, DemoOptions(model, 6, 4, 0.3, 0.0, None))
    assert name in (chosen.algorithm, chosen.form)
    if name in ALGORITHMS:
        assert chosen.privacy == ALGORITHMS[name].default_privacy


def test_without_a_name_the_privacy_mode_decides() -> None:
    assert resolve(None, None, OPTIONS).algorithm == "fedsgd"
    assert resolve(None, "local", OPTIONS).algorithm == "fedavg"
    assert resolve("fedsvd", "none", OPTIONS).algorithm == "fedavg"
    assert resolve("product", None, OPTIONS).privacy == "none"


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(CommandError, match="algorithm-unknown") as refused:
        resolve("fedavgg", None, OPTIONS)
    assert refused.value.expected == ", ".join(names())


@pytest.mark.parametrize(
    ("name", "privacy"), [("fedavg", "distributed"), ("fedsgd", "none"), ("product", "local")]
)
def test_a_mode_that_does_not_fit_is_refused_with_those_that_do(name, privacy) -> None:
    with pytest.raises(CommandError, match="algorithm-privacy") as refused:
        resolve(name, privacy, OPTIONS)
    for mode in str(refused.value.expected).replace("--privacy ", "").split(" or "):
        assert resolve(name, mode, OPTIONS).privacy == mode


def test_a_new_declaration_is_in_the_demo_with_the_terms_that_it_suggests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(FedAvg):
        default_privacy = "none"

        def suggested(self, privacy, population):
            return {"local_learning_rate": population / 64}

    monkeypatch.setitem(ALGORITHMS, "slow", Slow())
    assert resolve("slow", None, OPTIONS).privacy == "none"
    assert task_terms("tiny", "none", "slow", 8)["training"].local_learning_rate == 0.125
    assert "slow" in CliRunner().invoke(app, ["demo", "--help"]).stdout


def test_the_help_lists_every_name() -> None:
    shown = CliRunner().invoke(app, ["demo", "--help"]).stdout.replace("\n", " ")
    for name in names():
        assert name in shown


def test_a_buffer_of_the_demo_has_as_many_behind_a_model_as_its_devices_demand() -> None:
    model, _ = tiny()
    plan, _ = plan_kills(6, 0.3)
    spec = task_spec(resolve("fedbuff", None, OPTIONS), plan, model)
    assert spec.cohort.model_min == spec.cohort.survivors_min == plan.survivors_min
    assert task_spec(OPTIONS, plan, model).cohort.model_min is None
    assert spec.base_model is not None
    assert spec.base_model.name == "tiny"  # no path of this machine
