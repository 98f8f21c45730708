"""Partners, and the devices that were seen lately or are in question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aggregator.cohorts.drop_outs import NOT_DEALING_MIN
from aggregator.cohorts.strikes import Strike, score
from aggregator.http.dashboard.render import Page
from aggregator.service import Service
from aggregator.store import seen

PAGE = Page("devices", ("partners", "devices"))
DEVICES_SHOWN = 100
_ROWS = 1_000  # of each kind that are read


@dataclass
class DeviceLine:
    """``called``: its pseudonym in the log of today. ``seen_at``: of its newest session that the
    service still has; None: it has none. ``score``: of the strikes that still count."""

    called: str
    partner: str = ""
    seen_at: float | None = None
    task: str = ""
    cohort: str | None = None
    strikes: list[Strike] = field(default_factory=list)
    score: float = 0.0
    ban: str = ""
    banned_at: float | None = None
    never_deals: int = 0

    @property
    def trouble(self) -> tuple[bool, int, float]:
        return bool(self.ban), self.never_deals, self.score


async def values(service: Service) -> dict[str, Any]:
    core = service.core
    now = core.clock()
    async with core.database.read() as connection:
        sessions = await seen.newest_sessions(connection, _ROWS)
        bans = await seen.newest_bans(connection, _ROWS)
        strikes = await seen.newest_strikes(connection, _ROWS)
        idle = await seen.never_dealing(connection, NOT_DEALING_MIN, _ROWS)
        by_partner = await seen.partners_seen(connection)
        devices = await seen.devices_seen(connection)
        banned, struck = await seen.bans_and_strikes(connection)
    lines: dict[str, DeviceLine] = {}

    def line(name: str, identity: bytes) -> DeviceLine:
        return lines.setdefault(name, DeviceLine(core.pseudonyms.device(identity)))

    for session in sessions:
        one = line(session.name, session.identity)
        one.partner, one.seen_at = session.partner, session.received_at
        one.task, one.cohort = session.task, session.cohort
    for ban in bans:
        one = line(ban.name, ban.identity)
        one.partner, one.ban, one.banned_at = one.partner or ban.partner, ban.kind, ban.banned_at
    for strike in strikes:
        one = line(strike.name, strike.identity)
        one.partner = one.partner or strike.partner
        one.strikes.append(Strike(strike.cohort, strike.struck_at, strike.weight))
    for device in idle:
        one = line(device.name, device.identity)
        one.never_deals = max(one.never_deals, device.cohorts)
        one.task = one.task or device.task
    for one in lines.values():
        one.score = score(one.strikes, now)
    listed = sorted(lines.values(), key=lambda one: (one.trouble, one.seen_at or 0.0), reverse=True)
    partners = await service.partners.all()
    return {
        "now": now,
        "partners": [(row, by_partner.get(row.partner_key)) for row in partners],
        "names": {row.partner_key: row.name for row in partners},
        "removed": len(service.partners.removed),
        "devices": listed[:DEVICES_SHOWN],
        "known": len(lines),
        "seen": devices,
        "banned": banned,
        "struck": struck,
        "kept_s": core.settings.mail_retention_s,
    }
