"""The errors of the privacy floor; the tree and the rules are those of :mod:`secagg.errors`."""

from __future__ import annotations

from secagg.errors import SecaggError


class AccountingError(SecaggError):
    """A privacy cost that nobody can vouch for: unknown event, impossible parameter."""


class BudgetError(SecaggError):
    """A charge that the privacy account refuses."""


class MechanismError(SecaggError):
    """Values that do not fit the manifest's segments."""


class LedgerError(SecaggError):
    """Ledger data that does not parse, verify or fit."""


class LogShrank(LedgerError):
    """A signed checkpoint is of fewer leaves than one that was signed before."""


class LogForked(LedgerError):
    """A signed checkpoint does not extend one that was signed before.

    Attributes:
        proof: the RFC 6962 consistency proof that was shown.
    """

    proof: tuple[bytes, ...] = ()


class LogTooLarge(LedgerError):
    """A signed size that no honest log has."""


class LeafUnproven(LedgerError):
    """An entry that is not the leaf that it was shown as."""


class RootMismatch(LedgerError):
    """All entries of a log do not give the root that its checkpoint signs."""


class RecordMismatch(LedgerError):
    """A proven record does not say what its reader knows."""


class NotListed(LedgerError):
    """A proven record does not list a device as it should."""


class ReadError(SecaggError):
    """A file of a ledger cannot be had. That says nothing about what the ledger holds."""

    unreached = True
