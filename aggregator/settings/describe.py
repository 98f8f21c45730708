"""What people are told of the settings: their meaning, unit, range and default, a file to begin
with, and those in force. All of it from the declarations of :mod:`aggregator.settings.options`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from aggregator.logs import shown
from aggregator.settings.options import Settings
from aggregator.settings.sources import SECRETS, origins
from aggregator.store.urls import address
from secagg.toml_text import toml_value

_WIDTH = 96
_SHOWN = 1_000  # characters of a URL
_HEAD = """\
# Settings of `secagg serve`, each with its default. Take the # off a line to set it.
# Options of the command and variables SECAGG_... (SECAGG_PORT=8080) count before this file.
# `secagg config show --config FILE` prints what is in force, and from where.
"""


@dataclass(frozen=True)
class Described:
    """``default``: in words. ``range``: what its values may be, empty if the type says it.
    ``value``: the default or an example, as a file has it. ``section``: heading before it."""

    name: str
    meaning: str
    unit: str
    range: str
    default: str
    value: Any
    section: str


def described() -> tuple[Described, ...]:
    """All settings of a file, in order."""
    fields = Settings.model_fields.items()
    return tuple(_described(name, field) for name, field in fields if name != "config")


def _described(name: str, field: FieldInfo) -> Described:
    told: Any = field.json_schema_extra
    value = field.default if field.default_factory is None else None
    return Described(
        name=name,
        meaning=field.description or "",
        unit=told["unit"],
        range=_range(field),
        default=told["shown"] or _shown(value, told["unit"]),
        value=told["example"] if value is None else value,
        section=told["section"],
    )


def _shown(value: object, unit: str) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if unit and isinstance(value, int | float) else str(value)


def _range(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    ends = []
    for end in field.metadata:
        match end:
            case Gt(gt=low):
                ends.append(f"more than {low:,}")
            case Ge(ge=low):
                ends.append(f"at least {low:,}")
            case Lt(lt=high):
                ends.append(f"less than {high:,}")
            case Le(le=high):
                ends.append(f"at most {high:,}")
    return ", ".join(ends)


def template() -> str:
    """A TOML file of all settings, each behind a #, with unit, range, default and meaning."""
    parts = [_HEAD]
    for each in described():
        if each.section:
            parts.append(f"\n# ---- {each.section}\n")
        limits = ", ".join(part for part in (each.unit, each.range) if part)
        text = f"{each.meaning}{f' [{limits}]' if limits else ''} Default: {each.default}."
        parts.append("\n" + textwrap.indent(textwrap.fill(text, _WIDTH), "# ") + "\n")
        parts.append(f"# {each.name} = {toml_value(each.value)}\n")
    return "".join(parts)


@dataclass(frozen=True)
class InForce:
    """``value``: for people and programs; of a secret only whether there is one. ``default``: in
    words, of a setting without a value. ``origin``: the option, variable or file, or ``its
    default``."""

    name: str
    value: Any
    default: str
    unit: str
    origin: str


def in_force(settings: Settings, given: Mapping[str, Any]) -> tuple[InForce, ...]:
    """All settings as they count. ``given``: the arguments of :meth:`Settings.load`."""
    found = origins(Settings, given)
    return tuple(
        InForce(each.name, _counts(settings, each.name), each.default, each.unit, found[each.name])
        for each in described()
    )


def _counts(settings: Settings, name: str) -> Any:
    value = getattr(settings, name)
    if name == "database_url":
        return address(settings.database)
    if name == "blob_dir" and settings.blob_url is None:
        return str(settings.blobs_path)
    if name == "keys_dir":
        return str(settings.keys_path)
    if name in SECRETS or isinstance(value, SecretStr):
        return None if value is None else "(hidden)"
    if isinstance(value, dict):
        return {key: _without_password(text) for key, text in value.items()}
    return value if value is None or isinstance(value, int | float) else _without_password(value)


def _without_password(value: object) -> str:
    text = str(value)
    return shown(text, _SHOWN) if "://" in text else text
