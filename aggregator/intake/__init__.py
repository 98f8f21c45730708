"""What is taken in from callers: bodies, and how much may be under way at once."""
