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
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL

from aggregator.settings.sources import File, Variables, refusal
from aggregator.store.objects import checked_url
from aggregator.store.urls import parsed_url, sqlite_url
from secagg.errors import ConfigurationError

Port = Annotated[int, Field(ge=0, le=65_535)]
Text = Annotated[str, StringConstraints(min_length=1)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
]


def _named(folder: Any) -> Any:
    if folder == "":
        raise ValueError("a folder has a name")
    return folder


def _in_home(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ValueError("a folder of a user who has one") from error


Folder = Annotated[Path, BeforeValidator(_named), AfterValidator(_in_home)]


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


_TOKENS = f"{TOKEN_MIN} or more visible ASCII characters, without spaces"


def _is_token(text: str) -> bool:
    return len(text) >= TOKEN_MIN and all("!" <= letter <= "~" for letter in text)


def _token(given: SecretStr) -> SecretStr:
    if not _is_token(given.get_secret_value()):
        raise ValueError(_TOKENS)
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
            expected=_TOKENS,
            found=f"{len(text)} characters",
            remedy="Remove the file, and the service draws a new one.",
        )


Token = Annotated[SecretStr, AfterValidator(_token)]


class Settings(BaseSettings):
    """Settings of one replica.

    Replicas of one service share ``database_url``, ``blob_dir`` or ``blob_url``, and ``keys_dir``;
    ``data_dir`` is each replica's own (the rendered ledger, and by default everything else).
    ``Settings(...)`` reads what ``load`` reads; only ``load`` raises typed errors for bad values.
    """

    model_config = SettingsConfigDict(
        env_prefix="SECAGG_", env_ignore_empty=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    config: Path | None = None  # the TOML file with the others
    host: Text = "127.0.0.1"
    port: Port = 8080  # 0: any free port, printed on standard output
    admin_host: Text = "127.0.0.1"  # dashboard, health and metrics; keep it off the public net
    admin_port: Port = 8081
    # A proxy in front terminates TLS and appends the caller's address to X-Forwarded-For.
    behind_proxy: bool = False

    data_dir: Folder = Field(default_factory=_default_data_dir)
    blob_dir: Folder | None = None  # default data_dir/blobs
    blob_url: BlobUrl | None = None  # s3://bucket/prefix, in the place of blob_dir
    keys_dir: Folder | None = None  # default data_dir/keys
    database_url: SecretStr | None = None  # sqlite:///FILE or postgresql://...; default: data_dir
    operator_token: Token | None = None  # default: drawn into data_dir/operator.token
    ledger_name: Text = "secagg.local/ledger"  # origin line of the ledger's checkpoints

    witnesses: dict[str, str] = Field(default_factory=dict)  # verifier key -> URL of its service
    witness_timeout_s: float = Field(default=3.0, gt=0)  # a checkpoint waits no longer for them
    witness_retry_s: float = Field(default=10.0, ge=0)  # before those that did not answer are asked
    opening_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    opening_slice: int = Field(default=1 << 18, ge=1)  # coordinates of one thread at a time
    compute: Literal["local", "ray"] = "local"  # where masks are taken off a sum
    ray_address: Text | None = None  # default: a cluster here, of opening_threads processes
    poll_s: float = Field(default=0.5, gt=0)  # how soon another replica's commits are seen
    long_poll_max_s: float = Field(default=30.0, gt=0)
    mail_retention_s: float = Field(default=3600.0, ge=0)  # mail of a cohort that has ended
    opening_lease_s: float = Field(default=120.0, gt=0)  # unrenewed, another replica unmasks

    body_stall_s: float = Field(default=20.0, gt=0)  # a body may pause this long
    body_min_rate: float = Field(default=2_048.0, ge=0)  # bytes per second, over a whole body
    upload_chunk_max: int = Field(default=64 << 20, ge=1)  # bytes of one PUT
    requests_per_s: float = Field(default=50.0, gt=0)  # of one device, sustained
    request_burst: int = Field(default=200, ge=1)
    # One device has two long polls open and one transfer; more are repeats that cross each other.
    device_requests_max: int = Field(default=16, ge=1)  # open at once, of one device
    # Bodies in memory, in bytes: the largest message has 4 MiB, and a repeat may cross the first.
    device_body_bytes_max: int = Field(default=16 << 20, ge=8 << 20)  # of one device
    body_bytes_max: int = Field(default=256 << 20, ge=16 << 20)  # of all together

    # A waiting device keeps two connections open; about 60 KB of memory each.
    connections_max: int = Field(default=8_192, ge=2)  # fewer where the open files do not suffice
    # 500 devices behind one address translator. Behind a proxy, which is one address too: as many
    # as connections_max; the proxy then caps the addresses. Never more than half of all.
    connections_per_address: int = Field(default=1_024, ge=1)
    connection_first_byte_s: float = Field(default=10.0, gt=0)  # a client connects to send
    connection_header_s: float = Field(default=20.0, gt=0)  # 1 KB at 100 bytes/s, and more
    connection_idle_s: float = Field(default=75.0, gt=0)  # longer than proxies keep theirs
    # A model at 2 KB/s is 1.2 MB in this time; a device goes on where it broke off.
    answer_max_s: float = Field(default=600.0, gt=0)  # for one answer to be taken

    # Free bytes below which no cohort is formed or charged, and the service is not ready.
    disk_free_min: int = Field(default=256 << 20, ge=0)
    # Between SIGTERM and the drain, not ready but served: until balancers have noticed.
    # None: 0 on a loopback address, 5 elsewhere.
    shutdown_wait_s: float | None = Field(default=None, ge=0)

    log_level: LogLevel = "INFO"
    audit_log: Path | None = None  # file of what operators do; None: standard error, as the log

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
