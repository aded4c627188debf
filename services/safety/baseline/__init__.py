"""The embedded default: small heads on MiniLM embeddings, the corpora and the script that train them, their card."""
