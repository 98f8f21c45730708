"""Partial sums of cohorts: which generation of each shard counts, and whose vectors are in it.

Every function works in its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from aggregator.store.database import Connection, cells_of, expect_one
from aggregator.store.schema import contributions, partial_sums


async def add_group(
    connection: Connection, cohort: str, shard: str, generation: int, identities: Iterable[bytes]
) -> None:
    """Make a generation of a shard the one that counts, with the vectors that it adds.

    ``generation``: from 1, one more than the present one. ``identities``: keys of the devices.

    Raises:
        Conflict: another generation counts, or a device's vector is in a sum already.
    """
    if generation == 1:
        await connection.execute(
            sa.insert(partial_sums).values(cohort=cohort, shard=shard, generation=1)
        )
    else:
        await expect_one(
            connection,
            sa.update(partial_sums)
            .where(partial_sums.c.cohort == cohort, partial_sums.c.shard == shard)
            .where(partial_sums.c.generation == generation - 1)
            .values(generation=generation),
        )
    cells = cells_of(connection)
    await connection.execute(
        sa.insert(contributions),
        [
            {
                "cohort": cohort,
                "identity": cells.name(identity.hex()),
                "shard": shard,
                "generation": generation,
            }
            for identity in identities
        ],
    )


async def generation_of(connection: Connection, cohort: str, shard: str) -> int | None:
    """The generation of a shard that counts; None before the first."""
    generation: int | None = await connection.scalar(
        sa.select(partial_sums.c.generation).where(
            partial_sums.c.cohort == cohort, partial_sums.c.shard == shard
        )
    )
    return generation


async def generations(connection: Connection, cohort: str) -> list[tuple[str, int]]:
    """(shard, generation) of all partial sums of a cohort."""
    rows = await connection.execute(
        sa.select(partial_sums.c.shard, partial_sums.c.generation).where(
            partial_sums.c.cohort == cohort
        )
    )
    return [(row.shard, row.generation) for row in rows]
