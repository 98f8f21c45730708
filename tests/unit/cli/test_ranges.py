"""Every option that is a number says the range that it really has.

What a command's own validation says of the ends of the stated range, and of the next value beyond
them, is asked of that validation itself: most commands would work for hours at the ends. An option
that is new must be entered here.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from client_sdk.accounts.period_limits import PeriodLimits
from client_sdk.policy import PrivacyPolicy
from client_sdk.training.lora import adapter_spec
from dp.accounting.statements import checked_multiplier
from dp.contracts.check import check_manifest
from dp.planning.epsilon import plan_epsilon
from dp.planning.task import plan_task
from secagg import limits
from secagg.errors import SecaggError
from secagg.graph.degrees import ThreatModel, _check
from secagg.ring import RING_BITS_MAX, RING_BITS_MIN
from secagg_cli.main import app
from secagg_cli.models.corpus import load_clients
from secagg_cli.ranges import number
from tests.kits.tiny_training import tiny, tiny_task

Validation = Callable[[Any], object]


def _cohort(value: int) -> None:
    _check(ThreatModel(value, 0, 0))


def _between(low: int, high: int) -> Validation:
    def check(value: int) -> None:
        if not low <= value <= high:
            raise ValueError(value)

    return check


def _plan(**given: Any) -> None:
    words = {"population": 100, "cohort": 100, "rounds": 1, "epsilon": 1.0, "delta": 1e-5}
    words |= {"length": 10}
    plan_task(**(words | given))


def _examples(**given: Any) -> None:
    """Of 2^40 examples one device more or less is little: delta allows for them all."""
    words = {"population": 1 << 40, "delta": 1e-20, "examples": 1 << 40, "unit": "example"}
    _plan(**(words | given))


def _privacy(**given: Any) -> None:
    words = {"noise_multiplier": 100.0, "rounds": 1, "delta": 1e-5, "sampling_rate": 1.0}
    plan_epsilon(**(words | given))


def _rank(value: int) -> None:
    adapter_spec(tiny()[0], "lora", value, 8, ("q_proj",), bytes(32))


def _terms(**changes: Any) -> None:
    """What the validator of tasks says of an adapter with such terms."""
    manifest = tiny_task("none", kind=changes.get("kind", "ffa-lora"))
    adapter = msgspec.structs.replace(manifest.adapter, **changes)
    check_manifest(msgspec.structs.replace(manifest, adapter=adapter))


def _unit_rows(value: int) -> None:
    tiny_task("distributed", unit="person", unit_rows_max=value, examples_max=1 << 16)


def _bits(value: int) -> None:
    _between(RING_BITS_MIN, RING_BITS_MAX)(value)


def _anything(_: object) -> None:
    """No other validation is known than the range itself."""


LENGTHS = _between(1, limits.VECTOR_LENGTH_MAX)
VALIDATIONS: dict[str, Validation] = {
    "demo --clients": lambda value: (load_clients(value), _cohort(value)),
    "demo --device-noise": lambda value: value and checked_multiplier(value),
    **{
        f"{command} --{option}": validation
        for command in ("explain", "join")
        for option, validation in {
            "min-cohort": lambda value: (_cohort(value), PrivacyPolicy(min_cohort=value)),
            "min-corrupt": lambda value: PrivacyPolicy(min_corrupt=value),
            "period-days": lambda value: PeriodLimits(period_s=value * 86_400.0),
        }.items()
    },
    "simulate --clients": _cohort,
    "simulate --length": LENGTHS,
    "simulate --bits": _bits,
    "task create --rank": _rank,
    "task create --alpha": lambda value: _terms(alpha=value),
    "task create --sketch": lambda value: value and _terms(kind="product", sketch=value),
    "audit attack --noise-multiplier": checked_multiplier,
    "plan task --cohort": lambda value: (_cohort(value), _plan(cohort=value, population=10_000)),
    "plan task --rounds": lambda value: _plan(rounds=value),
    "plan task --epsilon": lambda value: _plan(epsilon=value),
    "plan task --delta": lambda value: _plan(delta=value),
    "plan task --population": lambda value: _plan(population=value, cohort=2, dropout=0),
    "plan task --examples": lambda value: _examples(examples=value),
    "plan task --passes": lambda value: _examples(passes=value, rounds=10**6 if value > 1 else 1),
    "plan task --signal": lambda value: _examples(signal=value),
    "plan task --rank": _rank,
    "plan clip --rank": _rank,
    "plan clip --unit-rows-max": _unit_rows,
    "plan clip --alpha": lambda value: _terms(alpha=value),
    "plan task --length": lambda value: _plan(length=value),
    "plan task --dropout": lambda value: _plan(dropout=value),
    "plan task --batch": lambda value: _plan(batch=value),
    "plan task --clip": lambda value: _plan(clip=value),
    "plan task --period": lambda value: _plan(period=value, unit="example", rounds=20_000),
    "plan memory --rank": _rank,
    "plan privacy --noise-multiplier": checked_multiplier,
    "plan privacy --rounds": lambda value: _privacy(rounds=value),
    "plan privacy --delta": lambda value: _privacy(delta=value),
    "plan privacy --sampling-rate": lambda value: _privacy(sampling_rate=value),
    "plan privacy --slot-overrun": lambda value: _privacy(slot_overrun=value, sampling_rate=0.5),
    "plan privacy --length": lambda value: _privacy(length=value, mechanism="skellam"),
    "plan cohort --clients": _cohort,
    "plan cohort --security-bits": lambda value: _check(ThreatModel(4, 0, 0, value)),
    "plan cohort --correctness-bits": lambda value: _check(ThreatModel(4, 0, 0, 40, value)),
    "bench mask --clients": _cohort,
    "bench mask --length": LENGTHS,
    "bench mask --bits": _bits,
    "bench protocol --length": LENGTHS,
    "bench protocol --bits": _bits,
}
_OF_A_POLICY = (
    "max-download-mb max-epsilon max-memory-mb max-total-epsilon min-witnesses "
    "period-epsilon period-mb period-minutes"
)
# Without other validation: counts of work, shares of it, and limits that a user sets.
_ALONE = {
    "account recover": "leaves-max",
    "audit attack": "canaries confidence releases",
    "audit report": "witnesses-min",
    "audit verify": "max-epsilon witnesses-min",
    "bench mask": "degree dropout repeat threads",
    "bench protocol": "clients repeat",
    "demo": "drop period rounds",
    "enroll": "count days",
    "explain": _OF_A_POLICY,
    "join": f"{_OF_A_POLICY} rounds",
    "plan cohort": "corrupt dropout",
    "plan memory": "available batch length",
    "serve": "admin-port port",
    "token rotate": "overlap",
    "simulate": "corrupt degree dropout processes rounds threshold",
    "witness serve": "port",
}
ALONE = frozenset(f"{name} --{option}" for name, all_ in _ALONE.items() for option in all_.split())
ANY_NUMBER = frozenset({"simulate --seed"})
RANGE_REASONS = {"parameter-out-of-range", "cohort-size", "corpus-clients", "adapter-rank"}
RANGE_REASONS |= {"security-bits", "sketch-size", "out-of-range"}


def options() -> Iterator[tuple[str, type, Any]]:
    """Every option of every command that is a number: its name, type, and typer's description."""

    def walk(group: typer.Typer, path: str) -> Iterator[tuple[str, type, Any]]:
        for command in group.registered_commands:
            hints = get_type_hints(command.callback, include_extras=True)
            name = command.name or command.callback.__name__
            for parameter, hint in hints.items():
                if get_origin(hint) is not Annotated:
                    continue
                inner, info = get_args(hint)[:2]
                kinds = [kind for kind in (inner, *get_args(inner)) if kind in (int, float)]
                if kinds:
                    option = (info.param_decls or (f"--{parameter.replace('_', '-')}",))[0]
                    yield f"{path}{name} {option}", kinds[0], info
        for below in group.registered_groups:
            yield from walk(below.typer_instance, f"{path}{below.name} ")

    yield from walk(app, "")


OPTIONS = {name: (kind, info) for name, kind, info in options()}
RANGED = sorted(OPTIONS.keys() - ANY_NUMBER)


def ends(name: str) -> list[tuple[float, float]]:
    """For each stated end the last value inside and the first beyond."""
    kind, info = OPTIONS[name]
    low, high, above, below = info.callback.ends

    def step(value: float, towards: float) -> float:
        if kind is int:
            return int(value) + (1 if towards > 0 else -1)
        return math.nextafter(value, towards)

    found = []
    if low is not None:
        found.append((kind(low), step(low, -math.inf)))
    if high is not None:
        found.append((kind(high), step(high, math.inf)))
    if above is not None:
        found.append((step(above, math.inf), kind(above)))
    if below is not None:
        found.append((step(below, -math.inf), kind(below)))
    return found


def refused(validation: Validation, value: float) -> bool:
    try:
        validation(value)
    except SecaggError as error:
        return error.reason in RANGE_REASONS
    except ValueError:
        return True
    return False


def test_every_option_that_is_a_number_states_its_range() -> None:
    assert VALIDATIONS.keys() | ALONE | ANY_NUMBER == OPTIONS.keys()
    assert not VALIDATIONS.keys() & ALONE
    assert all(ends(name) for name in RANGED)


@pytest.mark.parametrize("name", sorted(VALIDATIONS))
def test_the_ends_of_a_range_are_those_of_the_command_s_own_validation(name: str) -> None:
    for inside, beyond in ends(name):
        assert not refused(VALIDATIONS[name], inside), inside
        assert refused(VALIDATIONS[name], beyond), beyond


@pytest.mark.parametrize("name", RANGED)
def test_what_is_beyond_a_range_is_a_usage_error(name: str) -> None:
    *path, option = name.split()
    beyond = [str(value) for _, value in ends(name)]
    if OPTIONS[name][0] is float:
        beyond.append("nan")
    for value in beyond:
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*path, option, value])
        assert done.exit_code == 2, value
        assert f"Invalid value for '{option}': {value} is not in the range" in done.output
    check = OPTIONS[name][1].callback
    assert [check(inside) for inside, _ in ends(name)] == [inside for inside, _ in ends(name)]


def test_open_ends_are_in_the_help() -> None:
    assert number("A rate.", above=0, high=1).help == "A rate. [0<x<=1]"
    assert number("A rate.", low=0, below=1).help == "A rate. [0<=x<1]"
    assert number("Alpha.", low=1, high=1 << 20).help == "Alpha. [1<=x<=1048576]"


def test_nan_is_in_no_range() -> None:
    for option in (number("A rate.", low=0), number("A rate.", high=1), number("A rate.", below=1)):
        with pytest.raises(typer.BadParameter):
            option.callback(math.nan)
