"""The fields of a task's specification, for people: which an algorithm has, and a file to begin
with.

Meanings, units and ranges are those of the declarations (:func:`dp.contracts.spec_parts.told`).
Which algorithm has which field is said by its declaration, once, below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from dp.contracts.algorithms.declaration import Algorithm
from dp.contracts.algorithms.registry import algorithm_named
from dp.contracts.optimisers import BETA2, TAU
from dp.contracts.spec import TaskSpec
from secagg.toml_text import toml_value

_WIDTH = 96
_LOCAL_NOISE = 2.0  # noise multiplier of a template whose devices add noise: two steps a release
BY_COMMAND = ("base_model", "adapter")  # what task create --model fills in


@dataclass(frozen=True)
class Field:
    """``path``: such as ``cohort.size_min``. ``kind``: what its values are, in words. ``range``: of
    a number, in words. ``default``: None where no value says it; then ``default_text`` does."""

    path: str
    kind: str
    meaning: str
    unit: str
    range: str
    default: Any
    default_text: str
    example: Any
    required: bool


def _private(algorithm: Algorithm) -> bool:
    return algorithm.modes != {"none"}


def _free_weights(algorithm: Algorithm) -> bool:
    return not (algorithm.weighs_staleness or algorithm.keeps_control)


def _plain_steps(algorithm: Algorithm) -> bool:
    return algorithm.local_steps and not algorithm.keeps_control


_HAS: Mapping[str, Callable[[Algorithm], bool]] = {
    "privacy": lambda a: len(a.modes) > 1,
    "clip": _private,
    "noise_multiplier": _private,
    "sampling_rate": _private,
    "unit": _private,
    "unit_rows_max": _private,
    "examples_max": lambda a: "distributed" in a.modes,
    "period": lambda a: a.schedules and _private(a),
    "update_clip": lambda a: a.has_adapter and a.moves_model and "none" in a.modes,
    "device_noise_multiplier": lambda a: not a.keeps_control,
    "participation_rate": lambda a: not a.keeps_control,
    "mechanism": lambda a: not a.keeps_control,
    "removable_noise": lambda a: not a.keeps_control,
    "report_slot_s": lambda a: not a.weighs_staleness,
    "slot_overrun": lambda a: _private(a) and not a.weighs_staleness,
    "segments": lambda a: not a.has_adapter,
    "start_from": lambda a: a.has_adapter,
    "base_model": lambda a: a.has_adapter,
    "adapter": lambda a: a.has_adapter,
    "training": lambda a: a.has_adapter,
    "adaptive_clip": lambda a: a.clip_adapts,
    "cohort.silent_max": lambda a: not a.keeps_control,
    "cohort.versions_back": lambda a: a.weighs_staleness,
    "cohort.model_min": lambda a: a.weighs_staleness,
    "training.local_steps": lambda a: a.local_steps,
    "training.local_learning_rate": lambda a: a.local_steps,
    "training.local_epochs": _plain_steps,
    "training.local_momentum": _plain_steps,
    "training.local_optimiser": lambda a: _plain_steps(a) and not a.proximal_term,
    "training.batch_size": lambda a: a.moves_model,
    "training.proximal_mu": lambda a: a.proximal_term,
    "training.server_optimiser": lambda a: len(a.optimisers) > 1,
    "training.server_learning_rate": lambda a: a.moves_model,
    "training.server_momentum": lambda a: bool(a.optimisers & {"momentum", *TAU}),
    "training.server_beta2": lambda a: bool(a.optimisers & BETA2.keys()),
    "training.server_tau": lambda a: bool(a.optimisers & TAU.keys()),
    "training.weight_unit": lambda a: _free_weights(a) and "none" in a.modes,
    "training.denominator": lambda a: a.moves_model and _free_weights(a),
    "training.directions": lambda a: a.has_directions,
    "training.perturbation": lambda a: a.has_directions,
    "training.population": lambda a: a.keeps_control,
}
_REQUIRED: Mapping[str, Callable[[Algorithm], bool]] = {
    "task": lambda a: True,
    "segments": lambda a: not a.has_adapter,
    "training.population": lambda a: a.keeps_control,
    "training.weight_unit": lambda a: a.has_adapter and not a.moves_model,
}


def _anywhere(algorithm: Algorithm) -> bool:
    return True


def has_field(algorithm: Algorithm, path: str) -> bool:
    """Whether a field means something in tasks of the algorithm, in one mode at least."""
    return all(_HAS.get(part, _anywhere)(algorithm) for part in (path, path.partition(".")[0]))


def fields_of(name: str) -> tuple[Field, ...]:
    """All fields of an algorithm's tasks, in the order of a file; without those that ``secagg task
    create --model`` fills in.

    Raises:
        ConfigurationError: ``algorithm-unknown``.
    """
    algorithm = algorithm_named(name)
    found = _walk(msgspec.inspect.type_info(TaskSpec), "", algorithm)
    return tuple(field for field in found if has_field(algorithm, field.path))


def _walk(table: Any, where: str, algorithm: Algorithm) -> Iterator[Field]:
    for field in table.fields:
        path = f"{where}{field.name}"
        inner = table_in(field.type)
        if inner is not None and path not in BY_COMMAND:
            yield from _walk(inner, f"{path}.", algorithm)
        elif path not in BY_COMMAND:
            said = told_of(field.type)
            given = field.default is not msgspec.NODEFAULT
            needed = _REQUIRED.get(path)
            yield Field(
                path=path,
                kind=_among(path, algorithm) or kind_of(field.type),
                meaning=meaning_of(field.type),
                unit=said.get("unit", ""),
                range=range_of(said),
                default=field.default if given else None,
                default_text=said.get("default", ""),
                example=said.get("example"),
                required=needed is not None and needed(algorithm),
            )


def _among(path: str, algorithm: Algorithm) -> str:
    """The values of a field that the algorithm goes with, where they are fewer than its type's."""
    among = {"privacy": algorithm.modes, "training.server_optimiser": algorithm.optimisers}
    return " or ".join(toml_value(value) for value in sorted(among.get(path, ())))


# -- what a declaration says --------------------------------------------------------------------


def bare(kind: Any) -> Any:
    """A type without its metadata."""
    return kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind


def told_of(kind: Any) -> dict[str, Any]:
    """``unit``, ``default``, ``example``, ``low``, ``high``, ``above`` of a declared type."""
    found = kind.extra if isinstance(kind, msgspec.inspect.Metadata) else None
    return dict(found or {})


def meaning_of(kind: Any) -> str:
    found = kind.extra_json_schema if isinstance(kind, msgspec.inspect.Metadata) else None
    return str((found or {}).get("description", ""))


def table_in(kind: Any) -> Any:
    """The table that a field is, or may be; None: it is none."""
    kind = bare(kind)
    types = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    return next((t for t in types if isinstance(t, msgspec.inspect.StructType)), None)


def range_of(said: Mapping[str, Any]) -> str:
    ends = []
    if said.get("above") is not None:
        ends.append(f"more than {_number(said['above'])}")
    if said.get("low") is not None:
        ends.append(f"at least {_number(said['low'])}")
    if said.get("high") is not None:
        ends.append(f"at most {_number(said['high'])}")
    return ", ".join(ends)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def kind_of(kind: Any) -> str:
    """What values of a type are, in words."""
    match bare(kind):
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType():
            return "a whole number"
        case msgspec.inspect.FloatType():
            return "a number"
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(toml_value(value) for value in values)
        case msgspec.inspect.StructType():
            return "a table"
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"a list, each {kind_of(item)}"
        case msgspec.inspect.UnionType(types=types):
            parts = [t for t in types if not isinstance(t, msgspec.inspect.NoneType)]
            return " or ".join(map(kind_of, parts))
    return "text"


# -- a file to begin with -----------------------------------------------------------------------


def template(name: str) -> str:
    """A TOML file for ``secagg task create``: every field that tasks of the algorithm have, with
    unit, range, default and meaning. What has to be filled in is marked ``Required``; a field that
    is better left out stands behind a #.

    Raises:
        ConfigurationError: ``algorithm-unknown``.
    """
    algorithm = algorithm_named(name)
    start = _start(name, algorithm)
    model = " --model smollm2" if algorithm.has_adapter else ""
    parts = [
        f"# A task of the algorithm {name}. Fill in what is Required, then\n"
        f"#   secagg task create FILE{model} --dry-run\n"
        "# prints what follows from it, and without --dry-run creates it.\n"
    ]
    fields = sorted(fields_of(name), key=lambda field: field.path.count("."))  # TOML: tables last
    section = ""
    for field in fields:
        table, _, key = field.path.rpartition(".")
        if table != section:
            section = table
            optional = "# " if table_is_optional(table) else ""
            parts.append(f"\n{optional}[{table}]\n")
        if key == "segments":
            continue
        parts.append("\n" + _commented(field, start.get(field.path)))
        parts.append(_line(key, field, start.get(field.path), table_is_optional(table)))
    if not algorithm.has_adapter:
        parts.append(_segment())
    return "".join(parts)


def _start(name: str, algorithm: Algorithm) -> dict[str, Any]:
    """Values that a task of the algorithm begins with, where the default would be refused or teach
    nothing."""
    terms = algorithm.suggested(algorithm.default_privacy, 0)
    found = {f"training.{key}": value for key, value in terms.items() if value}
    found["algorithm"] = name
    if _private(algorithm):
        found["privacy"] = algorithm.default_privacy
    if algorithm.default_privacy == "local":
        found["noise_multiplier"] = _LOCAL_NOISE
    return found


def table_is_optional(table: str) -> bool:
    """Whether a task may be without the table."""
    if not table:
        return False
    whole: Any = msgspec.inspect.type_info(TaskSpec)
    found = next(field for field in whole.fields if field.name == table)
    return isinstance(bare(found.type), msgspec.inspect.UnionType)


def _commented(field: Field, start: Any) -> str:
    of = _kind_beside(field)
    limits = ", ".join(part for part in (field.unit, field.range, of) if part)
    text = field.meaning + (f" [{limits}]" if limits else "")
    if field.required:
        text += " Required."
    elif field.path == "algorithm":
        pass
    elif field.default is None:
        text += f" Default: {field.default_text}."
    else:
        text += f" Default: {toml_value(field.default)}."
        if start is not None and start != field.default:
            text += " Here is a value to begin with."
    return textwrap.indent(textwrap.fill(text, _WIDTH), "# ") + "\n"


def _kind_beside(field: Field) -> str:
    """Its kind, where neither unit nor range says that it is a number."""
    return "" if field.unit or field.range or field.kind == "text" else field.kind


def _line(key: str, field: Field, start: Any, optional: bool) -> str:
    if field.required:
        empty = "" if field.kind == "text" else 0
        return f"{key} = {toml_value(empty)}\n"
    value = field.default if start is None else start
    if value is None or optional:
        value = field.example if value is None else value
        return f"# {key} = {toml_value(value)}\n"
    return f"{key} = {toml_value(value)}\n"


def _segment() -> str:
    whole: Any = msgspec.inspect.type_info(TaskSpec)
    (field,) = (field for field in whole.fields if field.name == "segments")
    item = bare(field.type).item_type
    parts = [f"\n# {meaning_of(field.type)} One table each. Required.\n[[segments]]\n"]
    for inner in item.fields:
        said = told_of(inner.type)
        limits = ", ".join(part for part in (said["unit"], range_of(said)) if part)
        parts.append(f"# {meaning_of(inner.type)}{f' [{limits}]' if limits else ''} Required.\n")
        empty = "" if isinstance(bare(inner.type), msgspec.inspect.StrType) else 0
        parts.append(f"{inner.name} = {toml_value(empty)}\n")
    return "".join(parts)
