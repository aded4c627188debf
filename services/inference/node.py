"""Putting an inference node together: providers, registry, RPC edge."""
