"""The Llama family in plain PyTorch: configuration, model, tokenizers, chat formats, checkpoints; no RPC."""
