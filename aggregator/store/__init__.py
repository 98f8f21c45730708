"""The database: everything that must survive a crash, except large blobs.

Every statement stands here, by subject: ``tasks`` (with versions), ``sessions``, ``cohorts`` (with
their logs), ``mail``, ``sums``, ``charges``, ``standing``, ``refusals``, ``partners``, ``records``
of the ledger; ``reads`` is what routes and the operator's overview ask. A function that takes a
:data:`~aggregator.store.database.Connection` works in the transaction of its caller, who alone
begins and ends transactions. One that takes a ``Database`` is a single query.
"""
