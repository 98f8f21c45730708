"""What ``--algorithm NAME`` may be: every algorithm that trains, and every form of LoRA.

There is no list here. Names come from ``dp.contracts`` and ``secagg.manifest``, and whether one
goes with a privacy mode is asked of the validator that judges the task itself, so a new declaration
is part of the demo at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from secagg.errors import ConfigurationError
from secagg_cli.demo.kills import plan_kills
from secagg_cli.demo.spec import DemoOptions, task_spec
from secagg_cli.models.presets import Privacy, preset_for
from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from secagg.manifest import AdapterKind

_FORMS_RUN_ON = ("fedsgd", "fedavg")  # the first that goes with the privacy mode
_DEFAULT_FORM: AdapterKind = "ffa-lora"
_MODES: tuple[Privacy, ...] = ("distributed", "local", "none")


@dataclass(frozen=True)
class Choice:
    """What a name stands for in one privacy mode."""

    algorithm: str
    form: AdapterKind
    privacy: Privacy


def algorithm_names() -> tuple[str, ...]:
    from dp.contracts.algorithms.registry import names_where

    return tuple(names_where(lambda algorithm: algorithm.moves_model))


def form_names() -> tuple[AdapterKind, ...]:
    from secagg.manifest import AdapterKind

    return get_args(AdapterKind)


def names() -> tuple[str, ...]:
    return (*algorithm_names(), *form_names())


def resolve(name: str | None, privacy: Privacy | None, options: DemoOptions) -> DemoOptions:
    """The options with algorithm, form and privacy mode filled in.

    Without ``privacy`` the algorithm's own mode is taken, or the first that it goes with; a form of
    LoRA runs on the first of fedsgd and fedavg that goes with the mode.

    Raises:
        CommandError: ``algorithm-unknown``; ``algorithm-privacy``, with the validator's words.
        ConfigurationError: the other options go with no mode.
    """
    if name is not None and name not in names():
        raise CommandError(
            "algorithm-unknown",
            "The demo has no such algorithm or form of LoRA.",
            expected=", ".join(names()),
            found=name,
        )
    refusals = []
    for choice in _choices(name, _modes(name) if privacy is None else (privacy,)):
        chosen = replace(options, **vars(choice))
        refusal = _refusal(chosen)
        if refusal is None:
            return chosen
        refusals.append(refusal)
    fitting = [
        mode
        for mode in _MODES
        if any(_refusal(replace(options, **vars(c))) is None for c in _choices(name, (mode,)))
    ]
    if privacy is None or not fitting:
        raise refusals[0]
    raise CommandError(
        "algorithm-privacy",
        f"--algorithm {name} does not go with --privacy {privacy}: {refusals[-1].message}",
        expected=" or ".join(f"--privacy {mode}" for mode in fitting),
        found=privacy,
    )


def _modes(name: str | None) -> tuple[Privacy, ...]:
    """The algorithm's own mode first."""
    from dp.contracts import ALGORITHMS

    own = ALGORITHMS[name].default_privacy if name in ALGORITHMS else None
    return tuple(sorted(_MODES, key=lambda mode: mode != own))


def _choices(name: str | None, modes: tuple[Privacy, ...]) -> Iterator[Choice]:
    algorithms = (name,) if name in algorithm_names() else _FORMS_RUN_ON
    form = next((form for form in form_names() if form == name), _DEFAULT_FORM)
    for mode in modes:
        for algorithm in algorithms:
            yield Choice(algorithm, form, mode)


# What tells torch's linear layer, without torch.
_LINEAR = type(
    "Linear", (), {"__module__": "torch.nn.modules.linear", "in_features": 64, "out_features": 64}
)


class _OneLayer:
    """As much of a model as a task's description looks at, before any model is loaded."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._targets = targets

    def named_modules(self, remove_duplicate: bool = True) -> Iterator[tuple[str, object]]:
        for name in self._targets:
            yield name, _LINEAR()

    def named_parameters(self) -> Iterator[tuple[str, object]]:
        yield from ()


def _refusal(options: DemoOptions) -> ConfigurationError | None:
    """What the validator has against a task of these options."""
    plan, _ = plan_kills(options.clients, options.drop)
    model = _OneLayer(preset_for(options.model).adapter.target_modules)
    try:
        task_spec(options, plan, model)
    except ConfigurationError as error:
        return error
    return None
