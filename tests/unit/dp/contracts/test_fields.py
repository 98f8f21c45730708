"""Fields of a task's file: a template for each algorithm, and all that is wrong told at once."""

from __future__ import annotations

import copy
import functools
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from dp.contracts import ALGORITHMS, TaskSpec, build_manifest, check
from dp.contracts.fields import fields_of, has_field, kind_of, table_in, template, told_of
from dp.contracts.wrong_fields import WRONG_MAX, wrong_fields
from dp.tlog.notes import verifier_key
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from tests.kits.tasks import adapter

KEYS = {
    "created_at": 0,
    "task_key": bytes(32),
    "ledger_verifier": verifier_key("test", bytes(32)),
    "partner_keys": [bytes(32)],
}
FILLED = {  # what a template leaves open
    "task": "t",
    "segments": [{"name": "a", "length": 3, "clip": 1.0}],
    "training.population": 40,
    "training.weight_unit": 8,
}
CHANGED: Mapping[str, Any] = {  # another value of each field that a manifest keeps
    "task": "u",
    "privacy": "none",
    "clip": 2.0,
    "noise_multiplier": 3.0,
    "sampling_rate": 0.5,
    "examples_max": 128,
    "period": 2,
    "unit": "person",
    "unit_rows_max": 8,
    "update_clip": 3.0,
    "device_noise_multiplier": 30.0,
    "participation_rate": 0.5,
    "mechanism": "discrete-gaussian",
    "removable_noise": False,
    "report_slot_s": 60.0,
    "slot_overrun": 1e-12,
    "segments": [{"name": "b", "length": 2, "clip": 1.0}],
    "cohort.size_min": 23,
    "cohort.size_max": 26,
    "cohort.survivors_min": 21,
    "cohort.corrupt_max": 3,
    "cohort.silent_max": 4,
    "cohort.versions_back": 3,
    "cohort.model_min": 12,
    "deadlines.report_s": 61.0,
    "deadlines.share_s": 62.0,
    "deadlines.check_s": 63.0,
    "deadlines.masked_input_s": 64.0,
    "deadlines.confirm_s": 65.0,
    "deadlines.unmask_s": 66.0,
    "budget.max_epsilon": 9.0,
    "budget.delta": 1e-6,
    "budget.releases_max": 3,
    "training.local_steps": 3,
    "training.local_learning_rate": 0.5,
    "training.local_epochs": 1,
    "training.local_optimiser": "adam",
    "training.local_momentum": 0.5,
    "training.batch_size": 12,
    "training.proximal_mu": 0.1,
    "training.server_optimiser": "momentum",
    "training.server_learning_rate": 2.0,
    "training.server_momentum": 0.5,
    "training.server_beta2": 0.9,
    "training.server_tau": 0.1,
    "training.weight_unit": 7,
    "training.denominator": 99.0,
    "training.max_tokens": 65,
    "training.micro_batch": 5,
    "training.directions": 32,
    "training.perturbation": 0.02,
    "training.population": 50,
    "adaptive_clip.quantile": 0.6,
    "adaptive_clip.learning_rate": 0.3,
    "adaptive_clip.clip_min": 0.5,
    "adaptive_clip.clip_max": 70.0,
}
NOT_IN_A_MANIFEST = {"partners", "start_from", "algorithm"}
# Meanings that no manifest shows: the default stands there, and nobody reads it.
UNREAD = {
    "examples_max",
    "budget.max_epsilon",
    "training.local_learning_rate",
    "training.batch_size",
    "training.server_learning_rate",
    "training.denominator",
    "training.weight_unit",
    "training.perturbation",
    "training.local_steps",
    "training.proximal_mu",
}


@pytest.fixture
def no_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task costs has tests of its own, with the range of max_epsilon, and takes most of the
    time."""
    monkeypatch.setattr(check, "_check_budget", lambda manifest: None)
    monkeypatch.setattr(check, "check_overrun", lambda manifest: None)


def put(spec: dict[str, Any], path: str, value: Any) -> None:
    table, _, key = path.rpartition(".")
    (spec.setdefault(table, {}) if table else spec)[key] = value


def filled(name: str) -> dict[str, Any]:
    """The template with what it asks for."""
    return copy.deepcopy(_filled(name))


@functools.cache
def _filled(name: str) -> dict[str, Any]:
    spec = tomllib.loads(template(name))
    for field in fields_of(name):
        if field.required:
            put(spec, field.path, FILLED[field.path])
    return spec


def manifest_of(spec: Mapping[str, Any]) -> Manifest:
    task = msgspec.convert(spec, TaskSpec)
    if ALGORITHMS[task.algorithm].has_adapter:
        task = msgspec.structs.replace(task, adapter=adapter())
    return build_manifest(task, **KEYS)


def found(spec: Mapping[str, Any]) -> Manifest | None:
    try:
        return manifest_of(spec)
    except ConfigurationError:
        return None


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_template_is_accepted_once_what_it_requires_is_filled_in(name: str) -> None:
    text = template(name)
    assert tomllib.loads(text)["algorithm"] == name
    required = {field.path for field in fields_of(name) if field.required}
    assert required <= FILLED.keys()
    assert text.count("Required.") >= len(required)
    assert not wrong_fields(filled(name))
    manifest = manifest_of(filled(name))
    assert manifest.algorithm == name
    for field in fields_of(name):
        key = field.path.rpartition(".")[2]
        begins = (f"{key} = ", f"[[{key}]]")
        lines = [line.removeprefix("# ") for line in text.splitlines()]
        assert any(line.startswith(begins) for line in lines), field.path


IN_THE_RING = {"participation_rate", "mechanism", "removable_noise", "cohort.silent_max"}
NEEDS: Mapping[str, Mapping[str, Any]] = {  # what else a field needs
    "unit_rows_max": {"unit": "person"},
    "slot_overrun": {"report_slot_s": 60.0},
    "training.server_momentum": {"training.server_optimiser": "momentum"},
    "training.server_beta2": {"training.server_optimiser": "adam"},
    "training.server_tau": {"training.server_optimiser": "adam"},
}
_built: dict[str, Manifest | None] = {}


def settings(name: str, path: str) -> Iterator[dict[str, Any]]:
    """The template in each mode, without and with device-level noise."""
    algorithm = ALGORITHMS[name]
    for mode, device in itertools.product(sorted(algorithm.modes), (0.0, 20.0)):
        if device and not has_field(algorithm, "device_noise_multiplier"):
            continue
        if path in IN_THE_RING and not device and mode != "distributed":
            continue
        spec = filled(name)
        if algorithm.modes != {"none"}:
            spec["privacy"] = mode
        if device:
            spec["device_noise_multiplier"] = device
        for other, value in NEEDS.get(path, {}).items():
            if has_field(algorithm, other):
                put(spec, other, value)
        if path.startswith("adaptive_clip"):
            spec["adaptive_clip"] = {}
        del spec["budget"]["max_epsilon"]
        yield spec


def counts(name: str, path: str) -> bool:
    """Whether another value of the field gives another manifest, in some setting."""
    for spec in settings(name, path):
        key = repr(spec)
        if key not in _built:
            _built[key] = found(spec)
        put(spec, path, CHANGED[path])
        after = None if _built[key] is None else found(spec)
        if after is not None and _built[key] != after:
            return True
    return False


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.usefixtures("no_accounts")
def test_an_algorithm_has_the_fields_that_count_for_it(name: str) -> None:
    every = {f.path for other in ALGORITHMS for f in fields_of(other)} - NOT_IN_A_MANIFEST
    assert every == CHANGED.keys()
    has = {field.path for field in fields_of(name)}
    for path in sorted(every & has):
        assert counts(name, path), f"{path} is in the template, and changes nothing"
    for path in sorted(every - has - UNREAD):
        assert not counts(name, path), f"{path} is not in the template, and counts"


def ranged(table: Any = None, where: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for field in (table or msgspec.inspect.type_info(TaskSpec)).fields:
        path = f"{where}{field.name}"
        inner = table_in(field.type)
        if inner is not None and path not in ("base_model", "adapter"):
            yield from ranged(inner, f"{path}.")
        elif told_of(field.type).get("high") is not None and path != "budget.max_epsilon":
            yield path, field.type, told_of(field.type)


@pytest.mark.parametrize(
    ("path", "kind", "said"), list(ranged()), ids=lambda value: str(value)[:40]
)
@pytest.mark.usefixtures("no_accounts")
def test_what_is_out_of_the_range_that_people_are_told_is_refused(
    path: str, kind: Any, said: dict[str, Any]
) -> None:
    name = next(name for name in sorted(ALGORITHMS) if path in {f.path for f in fields_of(name)})
    whole = "whole" in kind_of(kind)
    beyond = said["high"] + 1 if whole else said["high"] * 1.01
    for value in (beyond, float("nan")):
        if whole and value != value:
            continue
        assert [w.path for w in wrong_fields({"task": "t", **nested(path, value)})] == [path]
        refused = []
        for spec in settings(name, path):
            put(spec, path, value)
            refused.append(found(spec) is None)
        assert any(refused), (path, value)  # without noise, its terms are not read


def nested(path: str, value: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    put(spec, path, value)
    return spec


def test_a_file_that_is_no_specification_costs_no_more_than_one_with_many_faults() -> None:
    looked_at: list[str] = []

    class Vocabulary(dict[str, int]):
        def items(self) -> Any:
            for key, value in super().items():
                looked_at.append(key)
                yield key, value

    assert len(wrong_fields(Vocabulary({f"token{n}": n for n in range(10_000)}))) == WRONG_MAX
    assert len(looked_at) <= WRONG_MAX


def test_all_that_is_wrong_is_told_at_once_each_with_its_way_out() -> None:
    wrong = wrong_fields(
        {
            "name": "bot",
            "rounds": 3,
            "size_min": 4,
            "cohort": {"size_mni": 4, "size_max": "many", "corrupt_max": None},
            "budget": {"delta": 0.5, "releases_max": True},
            "training": {"server_optimiser": "adamw"},
            "segments": [{"name": "a", "length": 0, "clip": 1.0, "norm": 2}],
            "deadlines": 5,
        }
    )
    assert [field.text for field in wrong] == [
        "name = 'bot': there is no such field. Is task meant?",
        "rounds = 3: there is no such field. Is budget.releases_max meant?",
        "size_min = 4: there is no such field. Is cohort.size_min meant?",
        "cohort.size_mni = 4: there is no such field. Is cohort.size_min meant?",
        "cohort.size_max = 'many': a whole number is expected.",
        "budget.delta = 0.5: a number, more than 0, at most 0.1, is expected.",
        "budget.releases_max = true: a whole number is expected.",
        'training.server_optimiser = \'adamw\': "adagrad" or "adam" or "momentum" or "sgd" or '
        '"yogi" is expected.',
        "segments[0].length = 0: a whole number, at least 1, at most 268,435,456, is expected.",
        "segments[0].norm = 2: there is no such field. There are segments[0].name, "
        "segments[0].length, segments[0].clip.",
        "deadlines = 5: a table is expected.",
        "task is missing: text is expected.",
    ]


def test_every_field_says_what_it_means() -> None:
    for name in ALGORITHMS:
        for field in fields_of(name):
            assert field.meaning.endswith("."), field.path
            assert field.default is not None or field.default_text or field.required, field.path
