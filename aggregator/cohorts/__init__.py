"""Driving ``secagg.server``: forming cohorts, committing events, adding vectors, unmasking sums."""
