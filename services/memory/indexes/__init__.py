"""The indexes that there are, by name."""
