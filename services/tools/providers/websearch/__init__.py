"""Web search: one tool, `web_search`, over several engines."""
