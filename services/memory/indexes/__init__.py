"""The indexes that there are, by name."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.memory.indexes.context import IndexContext


@dataclass(frozen=True, kw_only=True)
class IndexKind:
    """An index by where it is found: a package that is not installed is asked for only when it is chosen."""

    place: str
    """Module and class, `module:Class`."""
    upkeep: Literal["local", "transactional"]
    """How it is kept up to date; see `services.memory.index`."""
    database: str = ""
    """The database that it needs, `sqlite` or `postgresql`; empty = any."""
    package: str = ""
    """Python module that it needs beyond the service's own; empty = none."""
    install: str = ""
    """What is installed to get it."""

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return not self.package or importlib.util.find_spec(self.package) is not None

    def make(self, context: IndexContext) -> Any:  # noqa: ANN401 (a VectorIndex or a KeywordIndex)
        """A new index, not yet open."""
        module, name = self.place.split(":")
        return getattr(importlib.import_module(f"services.memory.indexes.{module}"), name)(context)


VECTOR_INDEXES: Mapping[str, IndexKind] = {
    "scan": IndexKind(place="scan:ScanIndex", upkeep="local"),
    "qdrant-edge": IndexKind(
        place="qdrant_edge:QdrantEdgeIndex", upkeep="local", package="qdrant_edge", install="qdrant-edge-py"
    ),
    "qdrant": IndexKind(place="qdrant:QdrantIndex", upkeep="local", package="qdrant_client", install="qdrant-client"),
    "pgvector": IndexKind(place="pgvector:PgvectorIndex", upkeep="transactional", database="postgresql"),
}
KEYWORD_INDEXES: Mapping[str, IndexKind] = {
    "fts5": IndexKind(place="fts5:Fts5Index", upkeep="transactional", database="sqlite"),
    "tsvector": IndexKind(place="tsvector:TsvectorIndex", upkeep="transactional", database="postgresql"),
    "tantivy": IndexKind(place="tantivy:TantivyIndex", upkeep="local", package="tantivy", install="tantivy"),
}
