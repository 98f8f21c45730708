"""Partial sums of cohorts: which generation of each shard counts, and whose vectors are in it.

Every function works in its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.store.database import Connection, cells_of, expect_one
from aggregator.store.schema import contributions, partial_sums


@dataclass(frozen=True)
class Partial:
    """A partial sum. ``generation``: from 1. ``digest``: SHA-256 of its blob; None of one that an
    older version wrote."""

    shard: str
    generation: int
    digest: bytes | None


async def add_group(
    connection: Connection, cohort: str, partial: Partial, identities: Collection[bytes]
) -> None:
    """Make a generation of a shard the one that counts, with the vectors that it adds.

    ``partial``: its generation is one more than the present one. ``identities``: keys of the
    devices.

    Raises:
        Conflict: another generation counts, or a device's vector is in a sum already.
    """
    shard, generation = partial.shard, partial.generation
    digest = None if partial.digest is None else partial.digest.hex()
    if generation == 1:
        await connection.execute(
            sa.insert(partial_sums).values(cohort=cohort, shard=shard, generation=1, digest=digest)
        )
    else:
        await expect_one(
            connection,
            sa.update(partial_sums)
            .where(partial_sums.c.cohort == cohort, partial_sums.c.shard == shard)
            .where(partial_sums.c.generation == generation - 1)
            .values(generation=generation, digest=digest),
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


async def counts(
    connection: Connection, cohort: str, partial: Partial, identities: Collection[bytes]
) -> bool:
    """Whether this very partial sum counts, and its generation added the vectors of these devices
    and of nobody else."""
    if partial not in await partials(connection, cohort):
        return False
    claimed = await connection.scalars(
        sa.select(contributions.c.identity)
        .where(contributions.c.cohort == cohort, contributions.c.shard == partial.shard)
        .where(contributions.c.generation == partial.generation)
    )
    cells = cells_of(connection)
    return set(claimed) == {cells.name(identity.hex()) for identity in identities}


async def partials(connection: Connection, cohort: str) -> list[Partial]:
    """The partial sums of a cohort that count."""
    rows = await connection.execute(
        sa.select(partial_sums.c.shard, partial_sums.c.generation, partial_sums.c.digest).where(
            partial_sums.c.cohort == cohort
        )
    )
    return [
        Partial(row.shard, row.generation, row.digest and bytes.fromhex(row.digest)) for row in rows
    ]
