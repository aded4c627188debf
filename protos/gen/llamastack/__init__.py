"""Generated stubs of the mesh's contracts."""
