"""Benchmarks of tools."""
