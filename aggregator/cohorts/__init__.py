"""Driving ``secagg.server``: forming cohorts, committing events, adding vectors, opening sums."""
