"""Measurements that take longer than tests; see docs/algorithms.md."""
