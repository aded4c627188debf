"""Whether keys are needed: the one place that decides what "auto" means."""

import logging

from services.gateway.keys.config import AuthConfig
from services.gateway.keys.exposure import check_exposure, is_loopback
from services.gateway.keys.store import Keys

logger = logging.getLogger(__name__)


async def keys_required(config: AuthConfig, *, host: str, keys: Keys) -> bool:
    """Decide, log why, and refuse to be open by mistake.

    Args:
        config: What the operator said.
        host: Address that is listened on.
        keys: Those that there are.

    Raises:
        ConfigError: If other machines could use the stack without a key, and nobody said that they may.
        StoreError: If the database failed.
    """
    if config.required == "auto":
        required, reason = await _decide(config, host=host, keys=keys)
    else:
        required, reason = config.required, "configured"
    check_exposure(host, keys_required=required, allow_open=config.allow_open)
    logger.info("keys required" if required else "no keys required", extra={"host": host, "reason": reason})
    return required


async def _decide(config: AuthConfig, *, host: str, keys: Keys) -> tuple[bool, str]:
    if config.jwt is not None:
        return True, "tokens are configured"
    if await keys.exist():
        return True, "there are keys"
    if is_loopback(host):
        return False, "only this machine can reach it"
    if config.allow_open:
        return False, "allow_open"
    return True, "other machines can reach it"
