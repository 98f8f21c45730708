"""The ledger's records: their forms, a device's receipts, and the verification of all."""
