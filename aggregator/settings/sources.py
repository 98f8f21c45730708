"""Where settings come from beside arguments, and what is said of those that cannot be used.

Kubernetes sets variables in every pod for every service of its namespace: beside a service called
``secagg`` there is ``SECAGG_PORT=tcp://10.0.0.1:8080``. They are recognised and passed over. Other
variables ``SECAGG_*`` that no setting has are named in the log, since they may be meant for other
programs; a key of the file can only be meant for this one, and is refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource

from aggregator.logs import get_logger, shown
from secagg.errors import ConfigurationError
from secagg.files.text import TextFile
from secagg.names import nearest

_OTHERS = frozenset(
    {"server", "ca_file", "client_certificate", "client_key", "parent_pid", "torch_threads"}
)
SECRETS = frozenset({"blob_url", "database_url", "operator_token"})
_LISTED = (
    "`secagg config template` writes all settings with what they may be; docs/settings.md has them."
)
_REMEDIES = {
    "operator_token": "Leave it out, and the service draws one into its data folder; or make one: "
    "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
}
_SHOWN = 100
DEFAULT = "its default"
_KUBERNETES = re.compile(
    r"secagg(_\w+)?_(port=(tcp|udp|sctp)://\S+:\d+|(service_host|service_port(_\w+)?"
    r"|port_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)=.*)",
    re.DOTALL,
)
_FILE = TextFile(
    "file of settings",
    ConfigurationError,
    "settings-missing",
    "settings-malformed",
    remedy="Name a TOML file with --config or SECAGG_CONFIG, or leave both out.",
)
_log = get_logger("settings")


class Variables(EnvSettingsSource):
    """The environment, without the variables of Kubernetes."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        every = self.env_vars
        self.env_vars = {n: v for n, v in every.items() if not _KUBERNETES.fullmatch(f"{n}={v}")}
        self.passed_over = sorted(name.upper() for name in every.keys() - self.env_vars.keys())

    def __call__(self) -> dict[str, Any]:
        names = self.settings_cls.model_fields.keys() | _OTHERS
        for variable in self.env_vars:
            name = variable.removeprefix("secagg_")
            if name != variable and name not in names:
                near = _nearest(name, self.settings_cls)
                meant = f"SECAGG_{near.upper()}" if near else None
                _log.warning("variable-unknown", variable=variable.upper(), nearest=meant)
        if self.passed_over:
            _log.info("kubernetes-variables-passed-over", variables=self.passed_over)
        return _besides(self.current_state, super().__call__())

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """A table in a variable is JSON; anything else is then refused as no table."""
        try:
            table = super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value
        return table if isinstance(table, dict) else value


class File(TomlConfigSettingsSource):
    """The TOML file that the setting ``config`` names: it must be there. Keys of it that no setting
    has are refused with the values (:func:`refusal`).

    Raises:
        ConfigurationError: ``settings-missing``, ``settings-malformed``; ``settings-unknown`` if
            it names another file.
    """

    def __call__(self) -> dict[str, Any]:
        file = self.current_state.get("config")
        table = {} if file is None else self._read_file(Path(file))
        if "config" in table:
            raise ConfigurationError(
                "settings-unknown",
                f"There is no setting 'config' in a file such as {file}.",
                remedy="Name the file with --config or SECAGG_CONFIG.",
            )
        return _besides(self.current_state, table)

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return read_file(file_path)


def read_file(path: Path) -> dict[str, Any]:
    """Raises: ConfigurationError: ``settings-missing`` or ``settings-malformed``."""
    try:
        return tomllib.loads(_FILE.read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            "settings-malformed", f"The file of settings {path} is not TOML: {error}."
        ) from error


def refusal(
    model: type[BaseSettings], error: ValidationError, given: Mapping[str, Any]
) -> ConfigurationError:
    """``settings-unknown`` or ``settings-invalid``, of settings of which ``given`` were arguments:
    all that are wrong, each with its place, what is expected and found. It shows no secret."""
    places = _Places(model, given)
    wrong = {str(entry["loc"][0]): entry for entry in error.errors(include_url=False)}
    strange = [name for name in wrong if name not in model.model_fields]
    told = [places.unknown(name) for name in strange]
    found = [name for name in wrong if name not in strange]
    if strange:
        told += [places.unusable(name, wrong[name]) for name in found]
        meant = [near for name in strange if (near := _nearest(name, model))]
        return ConfigurationError(
            "settings-unknown",
            " ".join(told),
            remedy=f"Is {' or '.join(meant)} meant? {_LISTED}" if meant else _LISTED,
        )
    first, *others = found
    message = f"The setting {first}, from {places.of(first)}, cannot be used."
    return ConfigurationError(
        "settings-invalid",
        " ".join([message, *(places.unusable(name, wrong[name]) for name in others)]),
        expected=_expected(wrong[first]),
        found=_found(first, wrong[first]),
        remedy=" ".join(dict.fromkeys(_REMEDIES.get(name, _LISTED) for name in found)),
    )


def _expected(entry: Mapping[str, Any]) -> str:
    text: str = entry["msg"]
    return text.removeprefix("Input should be ").removeprefix("Value error, ")


def _found(name: str, entry: Mapping[str, Any]) -> str:
    return "(not shown)" if name in SECRETS else shown(str(entry["input"]), _SHOWN)


class _Places:
    """Where settings come from. ``given``: arguments; they may name the file."""

    def __init__(self, model: type[BaseSettings], given: Mapping[str, Any]) -> None:
        self._model = model
        self._given = given
        self._variables = Variables(model).env_vars
        self.file = given.get("config") or self._variables.get("secagg_config")

    def of(self, name: str) -> str:
        """Of a setting that has a value which is not its default."""
        if name in self._given:
            return f"--{name.replace('_', '-')}"
        if f"secagg_{name}" in self._variables:
            return f"the variable SECAGG_{name.upper()}"
        return str(self.file or DEFAULT)

    def unknown(self, name: str) -> str:
        near = _nearest(name, self._model)
        meant = f"; is {near} meant?" if near else "."
        return f"There is no setting {name!r}, which {self.of(name)} gives{meant}"

    def unusable(self, name: str, entry: Mapping[str, Any]) -> str:
        return (
            f"The setting {name}, from {self.of(name)}, cannot be used: expected "
            f"{_expected(entry)}, found {_found(name, entry)}."
        )


def origins(model: type[BaseSettings], given: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> the argument, variable or file that its value comes from, or ``its default``.

    Raises:
        ConfigurationError: as :class:`File`.
    """
    places = _Places(model, given)
    file = places.file
    table = {} if file is None else read_file(Path(file))
    found = {}
    for name in model.model_fields:
        origin = places.of(name)
        found[name] = origin if origin != str(file) or name in table else DEFAULT
    return found


def _besides(state: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The library would merge two tables; here the first counts."""
    return {name: value for name, value in values.items() if name not in state}


def _nearest(name: str, model: type[BaseSettings]) -> str | None:
    return nearest(name, model.model_fields.keys() - {"config", name})
