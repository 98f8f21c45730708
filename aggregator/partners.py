"""Partners whose keys may certify devices."""

from __future__ import annotations

import sqlalchemy as sa

from aggregator.core import Core
from aggregator.problems import Refusal, conflict
from aggregator.store.database import Conflict
from aggregator.store.schema import partners


class Partners:
    """The partners, with their keys at hand for every request."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.keys: frozenset[bytes] = frozenset()

    async def load(self) -> None:
        async with self._core.database.read() as connection:
            found = (await connection.execute(sa.select(partners.c.partner_key))).scalars()
            self.keys = frozenset(bytes.fromhex(key) for key in found)

    async def all(self) -> list[dict[str, object]]:
        async with self._core.database.read() as connection:
            rows = await connection.execute(sa.select(partners).order_by(partners.c.added_at))
            return [dict(row) for row in rows.mappings()]

    async def add(self, name: str, key: bytes) -> None:
        """Add a partner; the same name and key again change nothing.

        Raises:
            Refusal: 422 ``partner-key``, 409 ``partner-exists``.
        """
        if len(key) != 32 or not 1 <= len(name) <= 200:
            raise Refusal(
                422,
                "partner-key",
                "A partner has a name and a 32-byte Ed25519 key.",
                expected=32,
                found=len(key),
            )
        try:
            async with self._core.database.write() as connection:
                await connection.execute(
                    sa.insert(partners).values(
                        partner_key=key.hex(), name=name, added_at=self._core.clock()
                    )
                )
        except Conflict as error:
            known = {row["partner_key"]: row["name"] for row in await self.all()}
            if known.get(key.hex()) != name:
                raise conflict("partner-exists", "The key belongs to another partner.") from error
        await self.load()
