"""A bank as the rest of the service sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from llamastack import v1
from services.memory import filters
from services.memory.filters import Fields

KINDS = ("vector", "keyvalue", "keyword", "graph")


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One bank of one tenant, as it was when it was read."""

    number: int
    """Its row; what all other rows refer to."""
    tenant: str
    """Whose it is; empty where nobody is named."""
    identifier: str
    """Name by which its tenant addresses it."""
    kind: str
    """One of `KINDS`."""
    params: v1.BankParams
    """Settings with defaults filled in."""
    provider_id: str
    """The index that was asked for, or `auto`."""
    provider_resource_id: str
    """Its name at the provider."""
    display_name: str | None
    """Name for people, of a vector database."""
    embedding_model: str
    """Model of its embeddings; empty in banks without."""
    embedding_dimension: int
    """Numbers in an embedding; 0 in banks without."""
    embedding_stamp: str
    """Which of the chunks' embeddings count: see `tables.banks`."""
    revision: int
    """Of its last change."""
    created_at: int
    """Microseconds since 1970."""
    store: v1.VectorStore | None
    """What it is as a vector store; None where it was not made as one."""
    expires_at: int | None
    """When it ends, microseconds since 1970; None means never."""

    @property
    def holds_documents(self) -> bool:
        """Whether it is a bank of documents."""
        return self.kind in {"vector", "keyword"}

    @cached_property
    def fields(self) -> Fields:
        """The metadata fields that it declares; empty = everything is allowed."""
        if self.kind == "vector":
            return filters.declared(self.params.vector.metadata_fields)
        return filters.declared(self.params.keyword.metadata_fields)

    @cached_property
    def keyword_fields(self) -> Mapping[str, float]:
        """Fields that are searched by words, with their boosts; `content` is the chunk's text."""
        fields = {field.name: field.boost if field.HasField("boost") else 1.0 for field in self.params.keyword.fields}
        return fields or {"content": 1.0}

    @property
    def language(self) -> str:
        """BCP 47 tag that chooses stemming and stop words."""
        return self.params.keyword.language or "en"
