"""The services of the mesh; each folder is one process and talks to the others over gRPC."""
