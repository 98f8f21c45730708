"""A device's rounds: check-in, contribution, the exchange, and coming back for more."""
