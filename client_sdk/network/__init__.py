"""Requests to the aggregator, and what time it says that it is."""
