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

from aggregator.logs import get_logger
from secagg.errors import ConfigurationError
from secagg.files.text import TextFile
from secagg.names import nearest

_OTHERS = frozenset({"server", "ca_file", "parent_pid", "torch_threads"})
_SECRETS = frozenset({"blob_url", "database_url", "operator_token"})
_LISTED = "The settings and what they may be are listed in docs/operations.md."
_REMEDIES = {
    "operator_token": "Leave it out, and the service draws one into its data folder; or make one: "
    "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
}
_SHOWN = 100
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
    """The TOML file that the setting ``config`` names: it must be there and hold settings only.

    Raises:
        ConfigurationError: ``settings-missing``, ``settings-malformed`` or ``settings-unknown``.
    """

    def __call__(self) -> dict[str, Any]:
        file = self.current_state.get("config")
        table = {} if file is None else self._read_file(Path(file))
        for name in table:
            if name == "config" or name not in self.settings_cls.model_fields:
                meant = _nearest(name, self.settings_cls)
                raise ConfigurationError(
                    "settings-unknown",
                    f"There is no setting {name!r}, which {file} gives.",
                    remedy=f"Is {meant} meant?" if meant else "docs/operations.md has the names.",
                )
        return _besides(self.current_state, table)

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        try:
            return tomllib.loads(_FILE.read(file_path))
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                "settings-malformed", f"The file of settings {file_path} is not TOML: {error}."
            ) from error


def refusal(
    model: type[BaseSettings], error: ValidationError, given: Mapping[str, Any]
) -> ConfigurationError:
    """``settings-invalid``, of settings of which ``given`` were arguments; it shows no secret."""
    first, *rest = error.errors(include_url=False, include_context=False)
    name = str(first["loc"][0])
    others = sorted({str(entry["loc"][0]) for entry in rest} - {name})
    variables = Variables(model).env_vars
    if name in given:
        source = f"--{name.replace('_', '-')}"
    elif f"secagg_{name}" in variables:
        source = f"the variable SECAGG_{name.upper()}"
    else:
        source = str(given.get("config") or variables.get("secagg_config", "its default"))
    return ConfigurationError(
        "settings-invalid",
        f"The setting {name}, from {source}, cannot be used."
        + (f" Nor can {', '.join(others)}." if others else ""),
        expected=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
        found="(not shown)" if name in _SECRETS else str(first["input"])[:_SHOWN],
        remedy=_REMEDIES.get(name, _LISTED),
    )


def _besides(state: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The library would merge two tables; here the first counts."""
    return {name: value for name, value in values.items() if name not in state}


def _nearest(name: str, model: type[BaseSettings]) -> str | None:
    return nearest(name, model.model_fields.keys() - {"config", name})
