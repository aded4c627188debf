"""The Python SDK of the mesh."""
