"""The ledger as a device watches it: growth, its own receipts, evidence against it."""
