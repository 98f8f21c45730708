"""Text files that people write, and folders that they name: what is refused, and how it is told."""
