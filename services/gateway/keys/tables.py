"""The table of keys. Times are microseconds since 1970. The database may be shared with other services."""

import sqlalchemy as sa

metadata = sa.MetaData()

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Identifiers are compared and ordered by code point, as SQLite does by itself.
Name = sa.String().with_variant(sa.String(collation="C"), "postgresql")

keys = sa.Table(
    "gateway_key",
    metadata,
    sa.Column("number", Number, primary_key=True, autoincrement=True),
    sa.Column("key_id", Name, nullable=False, unique=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),  # SHA-256 of the secret
    sa.Column("tenant", Name, nullable=False, index=True),
    sa.Column("message", sa.LargeBinary, nullable=False),  # an ApiKey as made: without last_used_at, revoked_at
    sa.Column("request_id", Name, nullable=True, unique=True),  # of the call that made it
    sa.Column("request", sa.LargeBinary, nullable=True),  # its digest
    sa.Column("last_used_at", sa.BigInteger, nullable=True),
    sa.Column("revoked_at", sa.BigInteger, nullable=True),
    sqlite_autoincrement=True,
)
