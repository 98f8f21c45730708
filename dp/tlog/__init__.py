"""A C2SP transparency log: trees, notes, tiles and witnesses, without any I/O."""
