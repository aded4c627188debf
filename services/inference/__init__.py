"""Inference: chat, completion, embeddings and tokenization over engines in processes of their own."""
