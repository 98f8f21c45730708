"""Where settings come from, and what is said of those that cannot be used.

Kubernetes sets variables in every pod for every service of its namespace: beside a service called
``secagg`` there is ``SECAGG_PORT=tcp://10.0.0.1:8080``. They are recognised and passed over. Other
variables ``SECAGG_*`` that no setting has are named in the log, since they may be meant for other
programs; a key of the file can only be meant for this one, and is refused.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from aggregator.logs import get_logger
from secagg.errors import ConfigurationError

_PREFIX = "SECAGG_"
_CONFIG = "SECAGG_CONFIG"
_OTHERS = frozenset({_CONFIG, "SECAGG_SERVER", "SECAGG_PARENT_PID", "SECAGG_TORCH_THREADS"})
_SECRETS = frozenset({"database_url", "operator_token"})
_SHOWN = 100
_KUBERNETES = re.compile(
    r"SECAGG(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
_log = get_logger("settings")
_Model = TypeVar("_Model", bound=BaseModel)


class Given(NamedTuple):
    """A value, and where it was given, in words."""

    value: Any
    source: str


def merged(
    config: Path | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, Any],
    names: frozenset[str],
) -> dict[str, Given]:
    """Values by setting: those of the file under those of the environment under ``overrides``.

    Raises:
        ConfigurationError: ``settings-missing``, ``settings-malformed`` or ``settings-unknown``.
    """
    variables = _of_environment(environment, names)
    file = config or (Path(environment[_CONFIG]) if environment.get(_CONFIG) else None)
    given = {} if file is None else _of_file(file, names)
    for name, variable in variables.items():
        given[name] = Given(environment[variable], f"the variable {variable}")
    for name, value in overrides.items():
        given[name] = Given(value, f"--{name.replace('_', '-')}")
    return given


def checked(model: type[_Model], given: Mapping[str, Given]) -> _Model:
    """The settings themselves.

    Raises:
        ConfigurationError: ``settings-invalid``; a secret's value is not in it.
    """
    values = {name: _of_json(name, item.value) for name, item in given.items()}
    try:
        return model(**values)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)
    name, first = str(wrong[0]["loc"][0]), wrong[0]
    others = sorted({str(entry["loc"][0]) for entry in wrong[1:]} - {name})
    source = given[name].source if name in given else "its default"
    raise ConfigurationError(
        "settings-invalid",
        f"The setting {name}, from {source}, cannot be used."
        + (f" Nor can {', '.join(others)}." if others else ""),
        expected=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
        found="(not shown)" if name in _SECRETS else str(first["input"])[:_SHOWN],
        remedy="The settings and what they may be are listed in docs/service.md.",
    )


def _of_environment(environment: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    """Setting -> variable. An empty variable counts as one that is not set."""
    found, foreign = {}, []
    for variable, value in environment.items():
        upper = variable.upper()
        if not upper.startswith(_PREFIX) or upper in _OTHERS or not value:
            continue
        name = upper.removeprefix(_PREFIX).lower()
        port = upper.endswith("_PORT") and _KUBERNETES_PORT.fullmatch(value)
        if port or _KUBERNETES.fullmatch(upper):
            foreign.append(variable)
        elif name in names:
            found[name] = variable
        else:
            _log.warning(
                "variable-unknown", variable=variable, nearest=_nearest_variable(name, names)
            )
    if foreign:
        _log.info("kubernetes-variables-passed-over", variables=sorted(foreign))
    return found


def _of_file(file: Path, names: frozenset[str]) -> dict[str, Given]:
    try:
        table = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(
            "settings-missing",
            f"The file of settings {file} cannot be read: {error.strerror or error}.",
            remedy=f"Name a TOML file with --config or {_CONFIG}, or leave both out.",
        ) from error
    except ValueError as error:  # TOML's, or not UTF-8
        raise ConfigurationError(
            "settings-malformed", f"The file of settings {file} is no TOML: {error}."
        ) from error
    for name in table:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, 1)
            raise ConfigurationError(
                "settings-unknown",
                f"There is no setting {name!r}, which {file} gives.",
                remedy=f"Is {nearest[0]} meant?" if nearest else "docs/service.md has the names.",
            )
    return {name: Given(value, str(file)) for name, value in table.items()}


def _nearest_variable(name: str, names: frozenset[str]) -> str | None:
    nearest = difflib.get_close_matches(name, names, 1)
    return _PREFIX + nearest[0].upper() if nearest else None


def _of_json(name: str, value: Any) -> Any:
    """A variable can only hold text: a table in it is JSON."""
    if name != "witnesses" or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value  # which is then refused as no table
