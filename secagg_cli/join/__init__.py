"""``secagg join``: one device from the command line, and its training data."""
