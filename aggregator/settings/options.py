"""Every setting of the service: arguments, environment ``SECAGG_*``, a TOML file; the first counts.

Sizes are in bytes and times in seconds; the names say so. pydantic-settings reads them;
``aggregator.settings.sources`` says what is wrong with them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL

from aggregator.settings.sources import File, Variables, refusal
from aggregator.store.objects import checked_url
from aggregator.store.urls import parsed_url, sqlite_url
from secagg.errors import ConfigurationError

Port = Annotated[int, Field(ge=0, le=65_535)]
Text = Annotated[str, StringConstraints(min_length=1)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\r\n]+$")]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
]


def _named(path: Any) -> Any:
    if path == "":
        raise ValueError("a file or folder with a name")
    return path


def _in_home(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ValueError("a folder of a user who has one") from error


Folder = Annotated[Path, BeforeValidator(_named), AfterValidator(_in_home)]
NamedFile = Annotated[Path, BeforeValidator(_named)]


def _default_data_dir() -> Path:
    try:
        return user_data_path("secagg")
    except RuntimeError as error:
        raise ConfigurationError(
            "no-home",
            "This user has no home folder, where the service's data would be.",
            remedy="Give --data-dir FOLDER, or set SECAGG_DATA_DIR.",
        ) from error


BlobUrl = Annotated[str, AfterValidator(checked_url)]
TOKEN_MIN = 8  # characters; a drawn one has 43
TOKEN_LONG = 20  # from here on nobody guesses it; of a shorter one a start warns

TOKENS = f"{TOKEN_MIN} or more visible ASCII characters, without spaces"


def _is_token(text: str) -> bool:
    return len(text) >= TOKEN_MIN and all("!" <= letter <= "~" for letter in text)


def _token(given: SecretStr) -> SecretStr:
    if not _is_token(given.get_secret_value()):
        raise ValueError(TOKENS)
    return given


def demand_token(text: str, file: Path) -> None:
    """Refuse a text of a file that is easily guessed, or that no request could carry.

    Raises:
        ConfigurationError: ``operator-token-weak``.
    """
    if not _is_token(text):
        raise ConfigurationError(
            "operator-token-weak",
            f"{file} holds no token that could be used.",
            expected=TOKENS,
            found=f"{len(text)} characters",
            remedy="Remove the file, and the service draws a new one.",
        )


Token = Annotated[SecretStr, AfterValidator(_token)]


def setting(
    meaning: str,
    default: Any = ...,
    *,
    unit: str = "",
    shown: str = "",
    example: Any = None,
    section: str = "",
    **more: Any,
) -> Any:
    """A setting with all that people are told of it (:mod:`aggregator.settings.describe`).

    Args:
        meaning: sentences.
        unit: of a number.
        shown: the default in words, where the value does not say it.
        example: a value for the template, where there is no default value.
        section: heading of this setting and those behind it.
        more: as of ``pydantic.Field``.
    """
    told = {"unit": unit, "shown": shown, "example": example, "section": section}
    if "default_factory" not in more:
        more["default"] = default
    return Field(description=meaning, json_schema_extra=told, **more)


class Settings(BaseSettings):
    """Settings of one replica.

    Replicas of one service share ``database_url``, ``blob_dir`` or ``blob_url``, and ``keys_dir``;
    ``data_dir`` is each replica's own (the rendered ledger, and by default everything else).
    ``Settings(...)`` reads what ``load`` reads; only ``load`` raises typed errors for bad values.
    """

    model_config = SettingsConfigDict(
        env_prefix="SECAGG_", env_ignore_empty=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    config: Path | None = setting("The TOML file with the other settings.", None)

    host: Text = setting(
        "Address that devices, operators and auditors call.", "127.0.0.1", section="Listening"
    )
    port: Port = setting("Its port. 0: any free one, printed on standard output.", 8080)
    admin_host: Text = setting(
        "Address of dashboard, health and metrics. Keep it off the public net.", "127.0.0.1"
    )
    admin_port: Port = setting("Its port. 0: any free one.", 8081)
    admin_names: Text | None = setting(
        "Names by which browsers open the dashboard over plain HTTP, such as a proxy's, with "
        "commas between them. Addresses, localhost and admin_host need no entry.",
        None,
        example="dashboard.example",
    )
    behind_proxy: bool = setting(
        "A proxy in front terminates TLS and appends the caller's address to X-Forwarded-For.",
        False,
    )

    tls_certificate: NamedFile | None = setting(
        "PEM file: the server's certificate, then those of its authorities. The files of this "
        "section are read again when they change.",
        None,
        example="/etc/secagg/tls/service.pem",
        section="TLS of the service itself",
    )
    tls_key: NamedFile | None = setting(
        "PEM file of its key, without a password, which nobody else may read.",
        None,
        example="/etc/secagg/tls/service.key",
    )
    tls_minimum: Literal["1.2", "1.3"] = setting("The lowest version of TLS.", "1.2")
    tls_client_ca: NamedFile | None = setting(
        "PEM file of authorities: every caller shows a certificate of theirs.",
        None,
        example="/etc/secagg/tls/callers.pem",
    )
    admin_tls: bool = setting("The admin port speaks TLS too, with the same certificate.", False)
    admin_client_ca: NamedFile | None = setting(
        "PEM file of authorities: the admin port speaks TLS, and who asks it for more than health "
        "shows a certificate of theirs.",
        None,
        example="/etc/secagg/tls/operators.pem",
    )

    data_dir: Folder = setting(
        "Folder of this replica alone: the rendered ledger, and what has no other place.",
        default_factory=_default_data_dir,
        shown="the user's data folder",
        example="/var/lib/secagg",
        section="Where data is. Replicas of one service share database, blobs and keys",
    )
    database_url: SecretStr | None = setting(
        "sqlite:////FILE or postgresql://USER:PASSWORD@HOST/NAME. Write %3F for ? in a path and "
        "%40 for @ in a password.",
        None,
        shown="secagg.db in data_dir",
        example="postgresql://secagg:PASSWORD@db.example/secagg",
    )
    blob_dir: Folder | None = setting(
        "Folder of models and vectors.",
        None,
        shown="blobs in data_dir",
        example="/srv/secagg/blobs",
    )
    blob_url: BlobUrl | None = setting(
        "s3://BUCKET/PREFIX: an object store in the place of blob_dir.",
        None,
        example="s3://bucket/secagg",
    )
    keys_dir: Folder | None = setting(
        "Folder of the service's own keys.",
        None,
        shown="keys in data_dir",
        example="/srv/secagg/keys",
    )
    disk_free_min: int = setting(
        "Free space below which no cohort is formed or charged, and the service is not ready.",
        256 << 20,
        unit="bytes",
        ge=0,
    )

    operator_token: Token | None = setting(
        f"What operators show: {TOKENS}.",
        None,
        shown="drawn into data_dir/operator.token",
        example="CHANGE-ME-to-43-random-characters",
        section="Operators and logs",
    )
    audit_log: NamedFile | None = setting(
        "File of what operators do.",
        None,
        shown="standard error, as the log",
        example="/var/log/secagg/audit.log",
    )
    log_level: LogLevel = setting("The least that is logged.", "INFO")

    ledger_name: Line = setting(
        "First line of the ledger's checkpoints.", "secagg.local/ledger", section="Ledger"
    )
    witnesses: dict[str, str] = setting(
        "Verifier key of each witness -> URL of its service; in a variable as JSON.",
        default_factory=dict,
        shown="none",
        example={"witness.example+c5a9+KEY": "https://witness.example"},
    )
    witness_timeout_s: float = setting(
        "A checkpoint waits no longer for its witnesses.", 3.0, unit="seconds", gt=0
    )
    witness_retry_s: float = setting(
        "Until witnesses that did not answer are asked again.", 10.0, unit="seconds", ge=0
    )

    compute: Literal["local", "ray"] = setting(
        "Where masks are taken off a sum: in this process, or on a Ray cluster.",
        "local",
        section="Unmasking",
    )
    ray_address: Text | None = setting(
        "Address of the Ray cluster.",
        None,
        shown="one on this machine",
        example="ray://head.example:10001",
    )
    opening_threads: int = setting(
        "Threads that unmask a sum.",
        default_factory=lambda: os.cpu_count() or 1,
        shown="one per core",
        example=4,
        ge=1,
    )
    opening_slice: int = setting("Of one thread at a time.", 1 << 18, unit="coordinates", ge=1)
    opening_lease_s: float = setting(
        "Without a sign of life for so long, another replica unmasks the sum.",
        120.0,
        unit="seconds",
        gt=0,
    )

    poll_s: float = setting(
        "How soon what another replica commits is seen.",
        0.5,
        unit="seconds",
        section="Waiting and deadlines of the service",
        gt=0,
    )
    long_poll_max_s: float = setting(
        "A request may wait so long for news.", 30.0, unit="seconds", gt=0
    )
    mail_retention_s: float = setting(
        "Mail of a cohort that has ended is kept so long.", 3600.0, unit="seconds", ge=0
    )
    shutdown_wait_s: float | None = setting(
        "Between SIGTERM and the drain, not ready but served, until balancers have noticed.",
        None,
        unit="seconds",
        shown="0 on a loopback host, else 5",
        example=5.0,
        ge=0,
    )

    upload_chunk_max: int = setting(
        "Of one PUT of a vector.",
        64 << 20,
        unit="bytes",
        section="Limits of requests",
        ge=1,
    )
    body_stall_s: float = setting("A body may pause so long.", 20.0, unit="seconds", gt=0)
    body_min_rate: float = setting(
        "Slowest body, over the whole of it.", 2_048.0, unit="bytes per second", ge=0
    )
    answer_max_s: float = setting(
        "For one answer to be taken; a device goes on where it broke off.",
        600.0,  # a model of 1.2 MB at 2 KB/s
        unit="seconds",
        gt=0,
    )
    requests_per_s: float = setting(
        "Of one device, sustained.", 50.0, unit="requests per second", gt=0
    )
    request_burst: int = setting("Of one device at once.", 200, unit="requests", ge=1)
    device_requests_max: int = setting(
        # Two long polls and one transfer; more are repeats that cross each other.
        "Open at once, of one device.",
        16,
        unit="requests",
        ge=1,
    )
    device_body_bytes_max: int = setting(
        # The largest message has 4 MiB, and a repeat may cross the first.
        "Bodies in memory, of one device.",
        16 << 20,
        unit="bytes",
        ge=8 << 20,
    )
    body_bytes_max: int = setting(
        "Bodies in memory, of all together.", 256 << 20, unit="bytes", ge=16 << 20
    )

    connections_max: int = setting(
        "Open at once; fewer where the limit of open files does not suffice. A waiting device "
        "keeps two open, of about 60 KB of memory each.",
        8_192,
        unit="connections",
        section="Limits of connections",
        ge=2,
    )
    connections_per_address: int = setting(
        # 500 devices behind one address translator.
        "Of one address, and never more than half of all. Behind a proxy, which is one address "
        "too, as many as connections_max; the proxy then caps the addresses.",
        1_024,
        unit="connections",
        ge=1,
    )
    connection_first_byte_s: float = setting(
        "Until a new connection has sent something.", 10.0, unit="seconds", gt=0
    )
    connection_header_s: float = setting(
        "For the head of a request.",
        20.0,
        unit="seconds",
        gt=0,  # 1 KB at 100 bytes/s, and more
    )
    connection_idle_s: float = setting(
        "Between requests; longer than proxies keep theirs.", 75.0, unit="seconds", gt=0
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, float, float | None):
            raise ValueError("a number")
        return value

    @classmethod
    def load(cls, config: Path | None = None, **overrides: Any) -> Settings:
        """Settings from a TOML file beneath the environment beneath ``overrides``.

        Args:
            config: the file; None: that of ``SECAGG_CONFIG``, if it is set.

        Raises:
            ConfigurationError: ``settings-missing`` or ``settings-malformed`` (the file),
                ``settings-unknown``, ``settings-invalid``, ``no-home``.
        """
        given = overrides if config is None else {"config": config, **overrides}
        try:
            settings = cls(**given)
        except ValidationError as error:
            raise refusal(cls, error, given) from None
        settings.database  # noqa: B018  a URL that does not parse is refused here
        settings._demand_whole_tls()
        if settings.blob_url is not None and settings.blob_dir is not None:
            raise ConfigurationError(
                "settings-invalid",
                "The settings blob_url and blob_dir name two stores.",
                expected="one of them",
                remedy="Take out the one that does not have the service's blobs.",
            )
        return settings

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Any, *_: Any, **__: Any
    ) -> tuple[Any, ...]:
        return init_settings, Variables(settings_cls), File(settings_cls)

    def _demand_whole_tls(self) -> None:
        """
        Raises:
            ConfigurationError: ``settings-invalid``.
        """
        needs = {
            "tls_certificate": "tls_key",
            "tls_key": "tls_certificate",
            "tls_client_ca": "tls_certificate",
            "admin_tls": "tls_certificate",
            "admin_client_ca": "tls_certificate",
        }
        for name, needed in needs.items():
            if getattr(self, name) and not getattr(self, needed):
                raise ConfigurationError(
                    "settings-invalid",
                    f"The setting {name} is there, and {needed} is not.",
                    expected=f"{needed} too",
                    remedy=f"Set {needed}, or take {name} out.",
                )

    @property
    def admin_speaks_tls(self) -> bool:
        return self.admin_tls or self.admin_client_ca is not None

    @property
    def blobs_path(self) -> Path:
        return self.blob_dir or self.data_dir / "blobs"

    @property
    def keys_path(self) -> Path:
        return self.keys_dir or self.data_dir / "keys"

    @property
    def database(self) -> URL:
        """With an asynchronous driver named.

        Raises:
            ConfigurationError: ``settings-invalid``.
        """
        if self.database_url is None:
            return sqlite_url(self.data_dir / "secagg.db")
        return parsed_url(self.database_url.get_secret_value())
