"""Everything that is wrong with the fields of a task's specification, told at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from dp.contracts.fields import BY_COMMAND, bare, kind_of, range_of, table_in, told_of
from dp.contracts.spec import TaskSpec
from secagg.names import nearest

WRONG_MAX = 64
_SHOWN = 60  # characters of a value
_OTHER_WORDS = {  # that other systems have for the same
    "name": "task",
    "rounds": "budget.releases_max",
    "num_rounds": "budget.releases_max",
    "epsilon": "budget.max_epsilon",
    "clients": "cohort.size_max",
    "devices": "cohort.size_max",
    "model": "base_model",
}


@dataclass(frozen=True)
class WrongField:
    """``path``: such as ``cohort.size_min``. ``found``: its value, shortened; None: it is missing.
    ``unknown``: no table has it. ``expected``: in words. ``meant``: paths of fields that are
    probably meant by an unknown one."""

    path: str
    found: str | None
    expected: str
    unknown: bool = False
    meant: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """A sentence with value, expectation and way out."""
        if self.found is None:
            return f"{self.path} is missing: {self.expected} is expected."
        if not self.unknown:
            return f"{self.path} = {self.found}: {self.expected} is expected."
        way = (
            f"Is {' or '.join(self.meant)} meant?" if self.meant else f"There are {self.expected}."
        )
        return f"{self.path} = {self.found}: there is no such field. {way}"


def wrong_fields(spec: object) -> tuple[WrongField, ...]:
    """Fields that no task has, and values of the wrong kind or out of range, in the file's order;
    the first ``WRONG_MAX`` of them, whatever is given for a specification.

    What depends on other fields is the contracts' to refuse (:func:`dp.contracts.build_manifest`).

    Args:
        spec: as TOML or JSON gives it.
    """
    return tuple(islice(_wrong(spec, msgspec.inspect.type_info(TaskSpec), ""), WRONG_MAX))


def _wrong(value: Any, kind: Any, where: str) -> Iterator[WrongField]:
    said, kind = told_of(kind), bare(kind)
    if isinstance(kind, msgspec.inspect.UnionType):
        types = [t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)]
        if value is None and len(types) < len(kind.types):
            return
        kind = types[0]
    match kind:
        case msgspec.inspect.StructType() if isinstance(value, Mapping):
            yield from _in_table(value, kind, where)
        case msgspec.inspect.VarTupleType(item_type=item) if isinstance(value, list):
            for number, inner in enumerate(value):
                yield from _wrong(inner, item, f"{where}[{number}]")
        case _ if not _is_of(value, kind):
            yield WrongField(where or "the file", _shown(value), kind_of(kind))
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType() if not _inside(value, said):
            yield WrongField(where, _shown(value), f"{kind_of(kind)}, {range_of(said)},")


def _in_table(value: Mapping[str, Any], kind: Any, where: str) -> Iterator[WrongField]:
    known = {field.encode_name: field for field in kind.fields}
    for key, inner in value.items():
        path = f"{where}.{key}".removeprefix(".")
        if key in known:
            yield from _wrong(inner, known[key].type, path)
        else:
            fields = ", ".join(f"{where}.{name}".removeprefix(".") for name in known)
            yield WrongField(path, _shown(inner), fields, True, _meant(key, where, known))
    for name, field in known.items():
        if field.required and name not in value:
            path = f"{where}.{name}".removeprefix(".")
            yield WrongField(path, None, kind_of(field.type))


def _meant(key: str, where: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The nearest field of this table, or else fields of the others."""
    if near := nearest(key, known):
        return (f"{where}.{near}".removeprefix("."),)
    if not where and key in _OTHER_WORDS:
        return (_OTHER_WORDS[key],)
    everywhere = _all_paths()
    near = nearest(key, {path.rpartition(".")[2] for path in everywhere})
    return tuple(path for path in everywhere if path.rpartition(".")[2] == near)


@functools.cache
def _all_paths() -> tuple[str, ...]:
    return tuple(_paths(msgspec.inspect.type_info(TaskSpec), ""))


def _paths(kind: Any, where: str) -> list[str]:
    found = []
    for field in kind.fields:
        path = f"{where}{field.encode_name}"
        found.append(path)
        inner = table_in(field.type)
        if inner is not None and path not in BY_COMMAND:
            found += _paths(inner, f"{path}.")
    return found


def _is_of(value: object, kind: Any) -> bool:
    match kind:
        case msgspec.inspect.BoolType():
            return isinstance(value, bool)
        case msgspec.inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case msgspec.inspect.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case msgspec.inspect.LiteralType(values=values):
            return value in values
        case msgspec.inspect.StrType() | msgspec.inspect.BytesType():
            return isinstance(value, str)
        case msgspec.inspect.StructType() | msgspec.inspect.VarTupleType():
            return False
    return True


def _inside(value: float, said: Mapping[str, Any]) -> bool:
    """NaN is in no range."""
    low, high, above = said.get("low"), said.get("high"), said.get("above")
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
