"""An aggregator in memory, for a partner's own tests. Not for production.

The devices are ordinary clients (:class:`client_sdk.Client`) over loopback HTTP; masks, signatures,
manifest, charges and ledger are real, made with keys that live as long as the test::

    async with testing.Aggregator("task.toml", devices=4) as service:
        clients = service.clients(4)
        results = await service.run(clients, contributor, rounds=1, lost={3: "masking"})
        [release] = service.releases
        assert release.survivors == 3

What it leaves out: a database, several tasks, an operator's page, bans, cosigned checkpoints, and
the server's half of an algorithm (``step``). Nothing else of the SDK imports this package.
"""

from client_sdk.testing.aggregator import Aggregator
from client_sdk.testing.books import Release

__all__ = ["Aggregator", "Release"]
