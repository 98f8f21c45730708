"""The errors of the protocol floor: one small tree with stable, machine-readable reasons.

``LocalProtocolError``: *you* misused the library (a programming error).
``RemoteProtocolError``: *the peer* broke the rules; whatever bytes come from outside, either they
parse and verify, or this error is raised and nothing else.
``ConfigurationError``: a manifest or parameter was refused when it was created.
"""

from __future__ import annotations


class SecaggError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        reason: stable identifier in kebab-case, part of the public interface.
        expected, found: both values, where there are two; never secrets or payloads.
        remedy: what the reader can do, where there is something.
        unreached: whether nobody was reached who could have answered: nothing is said about what
            was asked.
    """

    unreached = False

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.reason = reason
        self.message = message
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(str(self))

    @property
    def values(self) -> str:
        """``expected ..., found ...``: of the two values those that there are; or empty."""
        pairs = (("expected", self.expected), ("found", self.found))
        return ", ".join(f"{name} {value!r}" for name, value in pairs if value is not None)

    @property
    def detail(self) -> str:
        """The message, and both values as a sentence."""
        values = self.values
        return f"{self.message} {values[0].upper()}{values[1:]}." if values else self.message

    def __str__(self) -> str:
        text = f"{self.message} [{self.reason}]"
        if values := self.values:
            text += f" {values}."
        if self.remedy:
            text += f" {self.remedy}"
        return text


class LocalProtocolError(SecaggError):
    """The caller used the library against its rules."""


class RemoteProtocolError(SecaggError):
    """A peer sent something that the protocol forbids.

    ``culprit`` is the Ed25519 identity key (32 bytes) of the peer where it can be named.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        culprit: bytes | None = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.culprit = culprit
        super().__init__(reason, message, expected=expected, found=found, remedy=remedy)


class ConfigurationError(SecaggError):
    """A configuration was refused when it was created, with the reason."""
