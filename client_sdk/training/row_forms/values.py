"""Values of a row: what is absent or empty, plain text and JSON, and lists that are read once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

from client_sdk.errors import ContributionError

_T = TypeVar("_T")

MESSAGES_MAX = 1 << 14  # of one example; a template writes some characters around each
DEPTH_MAX = 64  # of lists and mappings in tools and their calls


def get(message: Mapping[Any, Any], name: str) -> Any:
    """None for what is absent."""
    value = message.get(name)
    return None if is_absent(value) else value


def is_absent(value: Any) -> bool:
    """Null, or what tables write where a record has no such field."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and value != value


def is_empty(value: Any) -> bool:
    return hasattr(value, "__len__") and len(value) == 0


def is_list(value: Any) -> bool:
    """A list, or an array with a first axis."""
    ordered = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return ordered or bool(getattr(value, "shape", ()))


def only(value: Any) -> Any:
    """The number in an array or tensor without axes; what else it is comes back."""
    try:
        return value.item()
    except Exception:
        return value


def checked_text(value: str, whose: str) -> str:
    """Raises: ContributionError ``example-text``: half of a surrogate pair is not a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ContributionError(
            "example-text",
            f"{whose} text is not Unicode: it has bytes that are not UTF-8, or half of a surrogate "
            "pair.",
            remedy="Read the source with its own encoding, and save it as UTF-8.",
        ) from error
    return str(value)


def json_value(value: Any, depth: int = 0) -> Any:
    """Plain lists, dictionaries and numbers, without what is absent."""
    if depth > DEPTH_MAX:
        raise ContributionError(
            "example-form", "Tools are nested too deeply.", expected=f"at most {DEPTH_MAX} levels"
        )
    if isinstance(value, str):
        return checked_text(value, "A tool's")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        items = at_most(value.items(), "A tool's keys")
        return {
            checked_text(str(k), "A tool's"): json_value(v, depth + 1)
            for k, v in items
            if not is_absent(v)
        }
    if isinstance(value, Real) and callable(getattr(value, "item", None)):
        return only(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [json_value(item, depth + 1) for item in at_most(value, "A tool's items")]
    raise ContributionError(
        "example-form", "A tool or a message holds what is not JSON.", found=type(value).__name__
    )


def read_once(messages: Any, whose: str = "Messages") -> list[Any]:
    """An iterator would be empty the second time, and one without an end would hold up the rest.

    Columns of messages, which older data sets have, are read as records.
    """
    if isinstance(messages, Mapping):
        return _records(messages, whose)
    if isinstance(messages, str | bytes) or not isinstance(messages, Iterable):
        is_json = isinstance(messages, str) and messages.lstrip()[:1] in ("[", "{")
        raise ContributionError(
            "example-form",
            f"{whose} are {'JSON text, ' if is_json else ''}not a list.",
            found=type(messages).__name__,
            remedy="Read the text first, with json.loads, and give what it holds."
            if is_json
            else None,
        )
    return at_most(messages, whose)


def at_most(items: Iterable[_T], whose: str) -> list[_T]:
    """Raises: ContributionError ``example-long``: more than ``MESSAGES_MAX``."""
    found = list(itertools.islice(items, MESSAGES_MAX + 1))
    if len(found) > MESSAGES_MAX:
        raise ContributionError(
            "example-long",
            f"{whose} are too many to be tokenised beside other examples.",
            expected=f"at most {MESSAGES_MAX}",
        )
    return found


def _records(columns: Mapping[Any, Any], whose: str) -> list[dict[Any, Any]]:
    if columns and not all(is_list(column) for column in columns.values()):
        raise ContributionError(
            "example-form",
            f"{whose} are one mapping, not a list.",
            expected="a list, even of one item",
            found=type(columns).__name__,
            remedy="Put it into a list.",
        )
    lists = {name: read_once(column, whose) for name, column in columns.items()}
    lengths = {len(column) for column in lists.values()}
    if len(lengths) != 1:
        raise ContributionError(
            "example-form",
            f"Columns of {whose.lower()} differ in length.",
            found=sorted(lengths),
        )
    return [{name: column[i] for name, column in lists.items()} for i in range(lengths.pop())]
