"""Documents are cut into pieces that a model can embed, each with its place in the text."""

VERSION = "2"
"""Changed whenever the same text is cut in another way: documents are then ingested again."""
