"""``secagg witness``: watch other people's ledgers."""
