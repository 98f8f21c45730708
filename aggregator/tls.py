"""TLS of a replica's ports: its certificate and key, and whose certificates callers must show.

The files are read again every :data:`LOOK_S`. What changed is tried first, and serves new
connections where it can be used; connections keep what they began with. What cannot be used is
refused at the start. Later it is told (log, ``/readyz``, metrics), and what was there before goes
on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from aggregator.logs import get_logger
from aggregator.settings.options import Settings
from secagg.errors import ConfigurationError
from secagg.files.text import TextFile

LOOK_S = 10.0
_log = get_logger("tls")
_READABLE, _USABLE = "tls-file-unreadable", "tls-file-malformed"
_CERTIFICATE = TextFile("certificate", ConfigurationError, _READABLE, _USABLE)
_KEY = TextFile(
    "key of the certificate",
    ConfigurationError,
    _READABLE,
    _USABLE,
    64 << 10,
    "tls-key-permissions",
)
_AUTHORITIES = TextFile(
    "file of authorities of client certificates", ConfigurationError, _READABLE, _USABLE
)
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True)
class _Files:
    """What the files hold."""

    certificate: str
    key: str
    client_ca: str | None
    admin_client_ca: str | None


failures: ContextVar[list[ssl.SSLError]] = ContextVar("failures")
"""Of the handshake under way."""


class _Alerting(ssl.SSLObject):
    """Sends its alert when a handshake fails: asyncio (3.11) closes the connection before that, and
    the caller would only see it reset. The caller closes it then, or its time runs out."""

    _failed: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """
        Raises:
            ssl.SSLError: also of a want of bytes, with which asyncio sends what there is to send.
        """
        if self._failed is not None:
            raise self._failed
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self._failed = error
            failures.get([]).append(error)
            raise ssl.SSLWantReadError from error


class _Newest(ssl.SSLContext):
    """A server's context that hands each connection to the newest one."""

    newest: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return self.newest.wrap_bio(*arguments, **named)


class Tls:
    """``public`` and ``admin``: contexts for the two ports; ``admin`` is None where that port
    speaks HTTP. ``failed``: why what lies in the files now does not serve; None: it does.

    Raises:
        ConfigurationError: ``tls-file-unreadable``, ``tls-file-malformed``,
            ``tls-key-permissions``, ``tls-key-encrypted``, ``tls-mismatch``, ``tls-expired``,
            ``tls-not-yet-valid``, ``tls-unusable``.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self.public = _Newest(ssl.PROTOCOL_TLS_SERVER)
        self.admin = _Newest(ssl.PROTOCOL_TLS_SERVER) if settings.admin_speaks_tls else None
        self.failed: ConfigurationError | None = None
        self._seen: _Files | None = None  # what serves
        self._looking: asyncio.Task[None] | None = None
        self._renew()

    @property
    def left_s(self) -> float:
        """Seconds until the certificate that serves ends; negative after it."""
        return self._ends_at - self._clock()

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look_on(), name="tls")

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Take what the files hold now, if it changed and can be used."""
        before = None if self.failed is None else str(self.failed)
        try:
            if not self._renew():
                return
        except ConfigurationError as error:
            self.failed = error
            if str(error) != before:
                _log.error(
                    "tls-renewal-failed",
                    reason=error.reason,
                    message=error.message,
                    remedy=error.remedy,
                    left_s=round(self.left_s),
                )
            return
        self.failed = None
        _log.info("tls-renewed", left_s=round(self.left_s))

    def _renew(self) -> bool:
        """Whether there was something to take, which serves now.

        Raises:
            ConfigurationError: also of what these libraries raise for files that nobody foresaw.
        """
        try:
            files = self._read()
            if files == self._seen and self.failed is None:
                return False
            self._take(files)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                "tls-unusable",
                f"The certificate {self._settings.tls_certificate}, its key or the authorities "
                f"beside it cannot be used: {type(error).__name__}: {error}.",
                remedy="Give files as they are issued: PEM, with a key of today.",
            ) from error
        return True

    def _read(self) -> _Files:
        settings = self._settings
        assert settings.tls_certificate is not None  # noqa: S101  nobody else asks
        assert settings.tls_key is not None  # noqa: S101  it comes with the certificate
        client, admin = settings.tls_client_ca, settings.admin_client_ca
        return _Files(
            _CERTIFICATE.read(settings.tls_certificate),
            _KEY.read(settings.tls_key),
            None if client is None else _AUTHORITIES.read(client),
            None if admin is None else _AUTHORITIES.read(admin),
        )

    def _take(self, files: _Files) -> None:
        ends_at = self._demand_valid_pair(files)
        public = self._context(files.client_ca, ssl.CERT_REQUIRED)
        admin = self._context(files.admin_client_ca, ssl.CERT_OPTIONAL)
        self._seen, self._ends_at = files, ends_at
        self.public.newest = public
        if self.admin is not None:
            self.admin.newest = admin

    def _demand_valid_pair(self, files: _Files) -> float:
        """The end of the certificate, in Unix seconds."""
        where, key_file = self._settings.tls_certificate, self._settings.tls_key
        try:
            chain = x509.load_pem_x509_certificates(files.certificate.encode())
        except ValueError as error:
            raise ConfigurationError(
                _USABLE,
                f"The certificate {where} holds no certificate in PEM form: {error}.",
                remedy="Give the server's certificate first, then those of its authorities.",
            ) from error
        try:
            key = load_pem_private_key(files.key.encode(), None)
        except TypeError as error:
            raise ConfigurationError(
                "tls-key-encrypted",
                f"The key {key_file} is encrypted, and nobody is there to type its password.",
                remedy=f"openssl pkey -in {key_file} -out KEY; chmod 600 KEY; and name that file.",
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(
                _USABLE,
                f"The file {key_file} holds no private key in PEM form.",
                remedy="Name the key that the certificate was asked for with.",
            ) from error
        leaf, own = chain[0], _spki(key)
        if _spki(leaf) != own:
            later = any(_spki(each) == own for each in chain[1:])
            raise ConfigurationError(
                "tls-mismatch",
                f"The key {key_file} does not belong to the first certificate of {where}.",
                remedy="Put the server's own certificate first, before its authorities'."
                if later
                else "Name the key and the certificate of one issue.",
            )
        begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        now = self._clock()
        if now < begins.timestamp():
            raise ConfigurationError(
                "tls-not-yet-valid",
                f"The certificate {where} is not valid yet.",
                expected=f"valid from {begins:%Y-%m-%d %H:%M} UTC on",
                remedy="Set this machine's clock, or wait.",
            )
        if now >= ends.timestamp():
            raise ConfigurationError(
                "tls-expired",
                f"The certificate {where} has expired.",
                found=f"valid until {ends:%Y-%m-%d %H:%M} UTC",
                remedy="Renew it. The service takes a new one without a restart.",
            )
        return ends.timestamp()

    def _context(self, authorities: str | None, demanded: ssl.VerifyMode) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = _Alerting
        context.minimum_version = _VERSIONS[settings.tls_minimum]
        context.set_alpn_protocols(["http/1.1"])
        assert settings.tls_certificate is not None  # noqa: S101  as in _read
        try:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(
                "tls-unusable",
                f"OpenSSL does not take {settings.tls_certificate} and its key: {error}.",
                remedy="Ask for a certificate with a key of today: ECDSA P-256, or RSA of 2,048 "
                "bits or more.",
            ) from error
        if authorities is not None:
            plain = authorities.encode("ascii", "ignore").decode()  # comments may have any letter
            try:
                context.load_verify_locations(cadata=plain)
            except (ssl.SSLError, ValueError) as error:
                raise ConfigurationError(
                    _USABLE,
                    f"A file of authorities of client certificates cannot be used: {error}.",
                    remedy="Give their certificates in PEM form.",
                ) from error
            context.verify_mode = demanded
        return context


def tls_of(settings: Settings, clock: Callable[[], float]) -> Tls | None:
    """None: the ports speak HTTP. Raises: as :class:`Tls`."""
    return None if settings.tls_certificate is None else Tls(settings, clock)


def _spki(holder: Any) -> bytes:
    """The public key of a certificate or of a private key."""
    encoded: bytes = holder.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
