"""The first tables, as they were: a later change of `tables.py` is a migration of its own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "bank",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("identifier", NAME, nullable=False),
        sa.Column("kind", NAME, nullable=False),
        sa.Column("params", sa.LargeBinary(), nullable=False),
        sa.Column("provider_id", NAME, nullable=False),
        sa.Column("provider_resource_id", NAME, nullable=False),
        sa.Column("display_name", sa.String(), nullable=True),
        sa.Column("embedding_model", NAME, server_default="", nullable=False),
        sa.Column("embedding_dimension", sa.Integer(), server_default="0", nullable=False),
        sa.Column("embedding_stamp", NAME, server_default="", nullable=False),
        sa.Column("revision", NUMBER, server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("store", sa.LargeBinary(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_bank"),
        sa.UniqueConstraint("tenant", "identifier", name="uq_bank_tenant_identifier"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "bank_index",
        sa.Column("bank", NUMBER, autoincrement=False, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("mark", NAME, nullable=False),
        sa.Column("totals", JSON, nullable=False),
        sa.PrimaryKeyConstraint("bank", "name", name="pk_bank_index"),
    )
    op.create_table(
        "embedding",
        sa.Column("stamp", NAME, nullable=False),
        sa.Column("content_hash", NAME, nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stamp", "content_hash", name="pk_embedding"),
    )
    op.create_index("ix_embedding_used_at", "embedding", ["used_at"], unique=False)
    op.create_table(
        "file",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("file_id", NAME, nullable=False),
        sa.Column("upload", NAME, nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("purpose", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("status_details", sa.String(), nullable=True),
        sa.Column("mime_type", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_file"),
        sa.UniqueConstraint("file_id", name="uq_file_file_id"),
        sa.UniqueConstraint("upload", name="uq_file_upload"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_file_expires_at", "file", ["expires_at"], unique=False)
    op.create_index("ix_file_tenant_number", "file", ["tenant", "number"], unique=False)
    op.create_table(
        "file_part",
        sa.Column("upload", NAME, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("upload", "place", name="pk_file_part"),
    )
    op.create_table(
        "job",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("job_id", NAME, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("bank_id", NAME, nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("digest", NAME, nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("counts", JSON, nullable=False),
        sa.Column("message", sa.String(), server_default="", nullable=False),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("last_sequence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker", NAME, server_default="", nullable=False),
        sa.Column("leased_until", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_job"),
        sa.UniqueConstraint("tenant", "job_id", name="uq_job_tenant_job_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_bank", "job", ["bank"], unique=False)
    op.create_index("ix_job_status", "job", ["status"], unique=False)
    op.create_table(
        "request",
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("method", NAME, nullable=False),
        sa.Column("request_id", NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("bank", NUMBER, nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "method", "request_id", name="pk_request"),
    )
    op.create_index("ix_request_bank", "request", ["bank"], unique=False)
    op.create_index("ix_request_created_at", "request", ["created_at"], unique=False)
    op.create_table(
        "document",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("document_id", NAME, nullable=False),
        sa.Column("source", sa.String(), server_default="", nullable=False),
        sa.Column("file_id", NAME, server_default="", nullable=False),
        sa.Column("mime_type", sa.String(), server_default="", nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("pages", JSON, nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.Column("content_hash", NAME, nullable=False),
        sa.Column("source_hash", NAME, server_default="", nullable=False),
        sa.Column("recipe_hash", NAME, nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("token_count", sa.Integer(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_document_bank"),
        sa.PrimaryKeyConstraint("number", name="pk_document"),
        sa.UniqueConstraint("document_id", "bank", name="uq_document_document_id_bank"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_document_bank_number", "document", ["bank", "number"], unique=False)
    op.create_index("ix_document_expires_at", "document", ["expires_at"], unique=False)
    op.create_index("ix_document_file_id", "document", ["file_id"], unique=False)
    op.create_table(
        "edge",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("edge_id", NAME, nullable=False),
        sa.Column("source", NAME, nullable=False),
        sa.Column("relation", NAME, nullable=False),
        sa.Column("target", NAME, nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("superseded_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_edge_bank"),
        sa.PrimaryKeyConstraint("number", name="pk_edge"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_edge_edge_id_bank", "edge", ["edge_id", "bank"], unique=False)
    op.create_index(
        "ix_edge_source_bank_relation_target", "edge", ["source", "bank", "relation", "target"], unique=False
    )
    op.create_index("ix_edge_target_bank", "edge", ["target", "bank"], unique=False)
    op.create_table(
        "entity",
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("entity_id", NAME, nullable=False),
        sa.Column("type", NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_entity_bank"),
        sa.PrimaryKeyConstraint("bank", "entity_id", name="pk_entity"),
    )
    op.create_table(
        "entity_word",
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("word", NAME, nullable=False),
        sa.Column("entity_id", NAME, nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_entity_word_bank"),
        sa.PrimaryKeyConstraint("bank", "word", "entity_id", name="pk_entity_word"),
    )
    op.create_index("ix_entity_word_entity_id_bank", "entity_word", ["entity_id", "bank"], unique=False)
    op.create_table(
        "entry",
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("version", NUMBER, nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("metadata", sa.LargeBinary(), nullable=True),
        sa.Column("json", sa.LargeBinary(), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_entry_bank"),
        sa.PrimaryKeyConstraint("bank", "key", name="pk_entry"),
    )
    op.create_index("ix_entry_expires_at", "entry", ["expires_at"], unique=False)
    op.create_table(
        "entry_change",
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("kind", NAME, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("version", NUMBER, nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("metadata", sa.LargeBinary(), nullable=True),
        sa.Column("json", sa.LargeBinary(), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_entry_change_bank"),
        sa.PrimaryKeyConstraint("bank", "revision", "key", name="pk_entry_change"),
    )
    op.create_table(
        "entry_log",
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("forgotten", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_entry_log_bank"),
        sa.PrimaryKeyConstraint("bank", name="pk_entry_log"),
    )
    op.create_table(
        "file_batch",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("batch_id", NAME, nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("cancelling", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("last_sequence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_file_batch_bank"),
        sa.PrimaryKeyConstraint("number", name="pk_file_batch"),
        sa.UniqueConstraint("batch_id", name="uq_file_batch_batch_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_file_batch_bank_number", "file_batch", ["bank", "number"], unique=False)
    op.create_table(
        "job_event",
        sa.Column("job", NUMBER, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["job.number"], name="fk_job_event_job"),
        sa.PrimaryKeyConstraint("job", "sequence", name="pk_job_event"),
    )
    op.create_table(
        "job_item",
        sa.Column("job", NUMBER, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("document_id", NAME, nullable=False),
        sa.Column("file_id", NAME, server_default="", nullable=False),
        sa.Column("source", sa.String(), server_default="", nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=True),
        sa.Column("done", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["job.number"], name="fk_job_item_job"),
        sa.PrimaryKeyConstraint("job", "place", name="pk_job_item"),
    )
    op.create_index("ix_job_item_file_id", "job_item", ["file_id"], unique=False)
    op.create_table(
        "removal",
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("chunk", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_removal_bank"),
        sa.PrimaryKeyConstraint("bank", "revision", "chunk", name="pk_removal"),
    )
    op.create_table(
        "staging",
        sa.Column("chunk", NUMBER, autoincrement=False, nullable=False),
        sa.Column("stamp", NAME, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_staging_bank"),
        sa.PrimaryKeyConstraint("chunk", "stamp", name="pk_staging"),
    )
    op.create_index("ix_staging_bank_stamp", "staging", ["bank", "stamp"], unique=False)
    op.create_table(
        "store_file",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("file_id", NAME, nullable=False),
        sa.Column("job", NUMBER, nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("detached", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attributes", JSON, nullable=False),
        sa.Column("given", JSON, nullable=False),
        sa.Column("strategy", sa.LargeBinary(), nullable=False),
        sa.Column("error_code", NAME, server_default="", nullable=False),
        sa.Column("error_message", sa.String(), server_default="", nullable=False),
        sa.Column("usage_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_store_file_bank"),
        sa.PrimaryKeyConstraint("number", name="pk_store_file"),
        sa.UniqueConstraint("bank", "file_id", name="uq_store_file_bank_file_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "store_job",
        sa.Column("job", NUMBER, autoincrement=False, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("job_id", NAME, nullable=False),
        sa.Column("batch", NUMBER, nullable=True),
        sa.Column("seen", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ended", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_store_job_bank"),
        sa.PrimaryKeyConstraint("job", name="pk_store_job"),
    )
    op.create_index("ix_store_job_bank_ended", "store_job", ["bank", "ended"], unique=False)
    op.create_index("ix_store_job_batch", "store_job", ["batch"], unique=False)
    op.create_table(
        "batch_event",
        sa.Column("batch", NUMBER, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["file_batch.number"], name="fk_batch_event_batch"),
        sa.PrimaryKeyConstraint("batch", "sequence", name="pk_batch_event"),
    )
    op.create_table(
        "batch_file",
        sa.Column("batch", NUMBER, nullable=False),
        sa.Column("file_id", NAME, nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["file_batch.number"], name="fk_batch_file_batch"),
        sa.PrimaryKeyConstraint("batch", "file_id", name="pk_batch_file"),
    )
    op.create_index("ix_batch_file_file_id_batch", "batch_file", ["file_id", "batch"], unique=False)
    op.create_table(
        "chunk",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("bank", NUMBER, nullable=False),
        sa.Column("document", NUMBER, nullable=False),
        sa.Column("chunk_id", NAME, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), server_default="", nullable=False),
        sa.Column("start", sa.Integer(), nullable=True),
        sa.Column("stop", sa.Integer(), nullable=True),
        sa.Column("page", sa.Integer(), nullable=True),
        sa.Column("token_count", sa.Integer(), nullable=False),
        sa.Column("content_hash", NAME, nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=True),
        sa.Column("embedding_stamp", NAME, server_default="", nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["bank"], ["bank.number"], name="fk_chunk_bank"),
        sa.ForeignKeyConstraint(["document"], ["document.number"], name="fk_chunk_document"),
        sa.PrimaryKeyConstraint("number", name="pk_chunk"),
        sa.UniqueConstraint("chunk_id", "bank", name="uq_chunk_chunk_id_bank"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_chunk_bank_revision", "chunk", ["bank", "revision"], unique=False)
    op.create_index("ix_chunk_document", "chunk", ["document"], unique=False)


def downgrade() -> None:
    """Drop them."""
    for table in (
        "chunk",
        "batch_file",
        "batch_event",
        "store_job",
        "store_file",
        "staging",
        "removal",
        "job_item",
        "job_event",
        "file_batch",
        "entry_log",
        "entry_change",
        "entry",
        "entity_word",
        "entity",
        "edge",
        "document",
        "request",
        "job",
        "file_part",
        "file",
        "embedding",
        "bank_index",
        "bank",
    ):
        op.drop_table(table)
