"""Documents become text, in child processes that can do nothing else: see `pool` for the parent's side."""

VERSION = "2"
"""Changed whenever the same bytes become another text: documents are then ingested again."""
