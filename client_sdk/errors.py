"""Errors of the device SDK: one small tree, stable reasons, and what to do next.

``RemoteProtocolError`` of :mod:`secagg.errors` is raised too, where a signed message breaks the
rules, and ``ConfigurationError`` for a choice that cannot be used; neither is a ``ClientError``.
``SecaggError`` is the base of them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from secagg.errors import ConfigurationError as ConfigurationError
from secagg.errors import RemoteProtocolError as RemoteProtocolError
from secagg.errors import SecaggError as SecaggError


class ClientError(SecaggError):
    """Base of what the SDK raises on purpose."""


class TransportError(ClientError):
    """The aggregator could not be reached, refused, or answered with something unusable.

    Attributes:
        status: HTTP status code of the answer; None if there was none.
        retry_after_s: seconds that the server asked to wait; None if it did not say.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.status = status
        self.retry_after_s = retry_after_s
        super().__init__(reason, message, expected=expected, found=found, remedy=remedy)

    @property
    def own_status(self) -> int | None:
        """``status``, if it is the aggregator's own."""
        return None if self.unreached else self.status


class Unreached(TransportError):
    """No word of the aggregator itself: nobody answered, or somebody between did in its place.

    Reasons: ``unreachable``, ``deadline``, ``answer-foreign`` (a page of a portal, a firewall or a
    balancer), ``proxy-auth``, ``proxy-refused``, ``proxy-unreachable``, ``proxy-malformed``,
    ``proxy-unsupported``, ``tls-untrusted``, ``tls-failed``. ``status`` is what came in the
    aggregator's place; it says nothing about what was asked.
    """

    unreached = True


class PolicyRefusal(ClientError):
    """This device refuses: the offer is weaker than its own policy. Nothing was trained or sent.

    Attributes:
        again_at: Unix seconds from which the same would be admitted, if nothing else is used, by a
            limit per period; None: time alone changes nothing.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
        again_at: float | None = None,
    ) -> None:
        self.again_at = again_at
        super().__init__(reason, message, expected=expected, found=found, remedy=remedy)


class LedgerRefusal(ClientError):
    """The ledger's log is not what it was, or does not hold what a receipt says it holds.

    The operator's fault, not the app's.

    Attributes:
        evidence: what the ledger showed, for others to check: signed notes, an entry and its proof
            (bytes), numbers and texts; no secrets. Empty where nothing was shown.
        lasting: whether a later look could not mend it: two signed statements contradict each
            other, or a proven record contradicts what this device knows.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
        evidence: Mapping[str, object] | None = None,
        lasting: bool = False,
    ) -> None:
        self.evidence = dict(evidence or {})
        self.lasting = lasting
        super().__init__(reason, message, expected=expected, found=found, remedy=remedy)


class ContributionError(ClientError):
    """The app's contributor failed, ran late, or returned something that does not fit.

    Attributes:
        row: place of the example that failed, from 0; None: not of one example.
        tensor: name of the tensor that does not fit; None: not of one tensor.
    """

    row: int | None = None
    tensor: str | None = None

    def at(self, *, row: int | None = None, tensor: str | None = None) -> Self:
        """This error, of one example or tensor."""
        self.row, self.tensor = row, tensor
        return self


class TaskRefusal(PolicyRefusal, ContributionError):
    """The contributor cannot serve this task, whatever its data.

    A contributor may raise it for what follows from the manifest, from the model or from how it was
    set up, in a task without any noise, for data of which nothing can be used, and, where examples
    serve in turn, for a list in which they have moved. For nothing else: unlike other failures it
    is told, not replaced by zeros.
    """


class ClockError(ClientError):
    """The device's clock and the aggregator's cannot both be right, or the latter went back."""


class RunningLoopError(ClientError, RuntimeError):
    """A call that blocks was made inside a running event loop (``loop-running``)."""


class StateError(ClientError):
    """The state folder is in use, damaged, or sealed under another key."""


class EnrolmentError(ClientError):
    """An enrolment bundle or partner key does not parse, does not fit, or lies open."""


class OutputError(ClientError):
    """A place that the user named for a result is taken, of the wrong kind, or not writable."""
