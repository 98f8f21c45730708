"""Differential privacy and the ledger of what it cost: pure functions over manifests and bytes."""
