"""The memory service: banks of four kinds, vector stores, files, ingestion and retrieval."""
