"""The tools of the mesh, served to MCP clients over streamable HTTP."""
