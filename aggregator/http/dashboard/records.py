"""The ledger: its head, its witnesses, its records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from aggregator.errors import not_found
from aggregator.http.dashboard.render import Page
from aggregator.service import Service
from aggregator.store import records
from dp.tlog.merkle import leaf_hash

PAGE = Page("ledger", ("head", "witnesses", "records"))
RECORDS_SHOWN = 30
UNKNOWN = "https://ADDRESS-OF-THE-SERVICE"
_ANY = ("0.0.0.0", "::")  # noqa: S104  no address that somebody could call
_TIMES = ("released_at", "at", "created_at")
_ABOUT = ("action", "outcome", "cause")


class RecordLine(NamedTuple):
    """``about``: what it says, in its own words. ``at``: Unix seconds; None: it names no time."""

    leaf: int
    kind: str
    task: str
    about: str
    at: float | None


async def values(service: Service, before: int | None = None) -> dict[str, Any]:
    """``before``: only records with a smaller index; None: the newest."""
    core = service.core
    async with core.database.read() as connection:
        head = await records.head(connection)
        size = 0 if head is None else head.size
        end = size if before is None else max(0, min(before, size))
        first = max(0, end - RECORDS_SHOWN)
        found = await records.leaves(connection, first, end)
    return {
        "now": core.clock(),
        "name": core.settings.ledger_name,
        "verifier": service.ledger.verifier,
        "size": size,
        "checkpoint": "" if head is None else head.checkpoint,
        "witnesses": service.ledger.witnesses(size),
        "records": _lines(first, found)[::-1],
        "first": first,
        "newest": before is None,
        "address": address(service),
    }


async def record(service: Service, leaf: int) -> dict[str, Any]:
    """
    Raises:
        Refusal: ``not-found``.
    """
    async with service.core.database.read() as connection:
        found = await records.leaves(connection, leaf, leaf + 1)
    if not found:
        raise not_found("record", str(leaf))
    return {
        "leaf": leaf,
        "line": _lines(leaf, found)[0],
        "hash": leaf_hash(found[0]).hex(),
        "text": json.dumps(json.loads(found[0]), indent=2, ensure_ascii=False),
        "verifier": service.ledger.verifier,
        "address": address(service),
    }


def address(service: Service) -> str:
    """Where auditors call the service, as far as it can know."""
    settings = service.core.settings
    if settings.behind_proxy or not settings.port or settings.host in _ANY:
        return UNKNOWN
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://{settings.host}:{settings.port}"


def _lines(first: int, found: Sequence[bytes]) -> list[RecordLine]:
    lines = []
    for leaf, encoded in enumerate(found, first):
        fields = json.loads(encoded)
        about = [str(fields[name]) for name in _ABOUT if fields.get(name)]
        if "release" in fields:
            about.insert(0, f"charge {fields['release']}")
        at = next((fields[name] for name in _TIMES if name in fields), None)
        lines.append(RecordLine(leaf, fields["type"], fields.get("task", ""), ", ".join(about), at))
    return lines
