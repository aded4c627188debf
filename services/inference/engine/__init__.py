"""The engine: token ids in, token ids out. It knows no RPC; `worker.py` runs it in a process of its own."""
