"""A device's steps over the files of a ledger, one after another, without a device."""

from __future__ import annotations

from typing import Any

from dp.ledger.contributors import members_of
from dp.ledger.receipts import demand_fields, in_sum
from dp.ledger.trusted_log import TrustedLog
from dp.tlog.notes import open_checkpoint, parse_verifier
from dp.tlog.tiles import Read


def log_of(verifier: str, remembered: bytes | None = None) -> TrustedLog:
    """The log as who remembers this signed checkpoint trusts it."""
    key = parse_verifier(verifier)
    return TrustedLog(key, last=None if remembered is None else open_checkpoint(remembered, key))


def check_receipt(
    read: Read,
    note: bytes,
    verifier: str,
    *,
    leaf_index: int,
    remembered: bytes | None,
    ctx: bytes,
    contributor: bytes,
) -> dict[str, Any]:
    """The record of a release that a device is in, by all steps of a receipt."""
    log = log_of(verifier, remembered)
    log = log.extend(read, log.open(note))
    record = log.leaf(read, leaf_index).record()
    demand_fields(record, {"type": "release", "ctx": ctx.hex()})
    in_sum(record, members_of(record, read), contributor, demanded=True)
    return record
