"""What libraries may log while they speak MCP."""

import logging

_LEVELS = {
    "httpx2": logging.WARNING,  # tells whole addresses, and their queries may hold keys
    "httpcore2": logging.WARNING,
    "mcp": logging.WARNING,  # tells ids of sessions, and messages with what users wrote
    "client": logging.WARNING,  # the SDK's name for its sessions
    "mcp.client.auth": logging.CRITICAL,  # its failures are raised, and answered to the caller
    "mcp.client.streamable_http": logging.ERROR,
    "uvicorn": logging.WARNING,
}


def quieten() -> None:
    """Keep secrets and what users wrote out of the log, whatever its level."""
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        logger.setLevel(max(level, logger.level))
