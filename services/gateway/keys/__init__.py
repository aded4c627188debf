"""Who may use the gateway, and how much: API keys, tokens of an identity provider, rates.

keys = Keys(database, cache_seconds=config.cache_seconds, cached=config.cached_keys)   # database: `upgrade`
async with keys.running(), make_rates(redis_address(url, password_file)) as rates:
    required = await keys_required(config, host=host, keys=keys)
    authenticator = make_authenticator(config, keys=keys, required=required)
    ...
    principal = await authenticator.authenticate(authorization)
    await rates.admit(principal)
    ...
    await rates.spend(principal, tokens)
"""

from services.gateway.keys.authenticator import Authenticator, make_authenticator
from services.gateway.keys.config import AuthConfig, JwtConfig
from services.gateway.keys.exposure import check_exposure
from services.gateway.keys.migrations import upgrade
from services.gateway.keys.rates import Rates, RedisAddress, make_rates, redis_address
from services.gateway.keys.requirement import keys_required
from services.gateway.keys.service import KeysService
from services.gateway.keys.store import Keys

__all__ = [
    "AuthConfig",
    "Authenticator",
    "JwtConfig",
    "Keys",
    "KeysService",
    "Rates",
    "RedisAddress",
    "check_exposure",
    "keys_required",
    "make_authenticator",
    "make_rates",
    "redis_address",
    "upgrade",
]
