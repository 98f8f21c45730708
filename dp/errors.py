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


class ReadError(SecaggError):
    """A file of a ledger cannot be had. That says nothing about what the ledger holds."""

    unreached = True
