"""``secagg audit``: a ledger's files, their verification, attacks, and the report."""
