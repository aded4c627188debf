"""Spans, metrics and events of the mesh, kept for a while and asked for over gRPC."""
