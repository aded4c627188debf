"""MCP in both directions: a client of other servers' tools, and a server of ours."""
