"""Keys of a task's specification that no table of it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from secagg.names import nearest


class UnknownKey(NamedTuple):
    """``where``: its table, such as ``budget``, or empty. ``known``: the keys of that table.

    ``meant``: the nearest of them, if one is near.
    """

    key: str
    where: str
    known: tuple[str, ...]
    meant: str | None


def unknown_keys(spec: Mapping[str, Any]) -> Iterator[UnknownKey]:
    """Those of a :class:`dp.contracts.TaskSpec` as a file has it, in the file's order."""
    from dp.contracts import TaskSpec

    return _unknown(spec, msgspec.inspect.type_info(TaskSpec), "")


def _unknown(value: Any, kind: Any, where: str) -> Iterator[UnknownKey]:
    match kind:
        case msgspec.inspect.StructType(fields=fields) if isinstance(value, Mapping):
            known = {field.encode_name: field.type for field in fields}
            for key, inner in value.items():
                if key in known:
                    yield from _unknown(inner, known[key], f"{where}.{key}".removeprefix("."))
                else:
                    yield UnknownKey(key, where, tuple(known), nearest(key, known))
        case msgspec.inspect.UnionType(types=types):
            for each in types:
                yield from _unknown(value, each, where)
        case msgspec.inspect.VarTupleType(item_type=item) if isinstance(value, list):
            for number, inner in enumerate(value):
                yield from _unknown(inner, item, f"{where}[{number}]")
