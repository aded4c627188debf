"""The gate before the routes: who bears a key or token, and whether the bearer's rate allows one more request."""

from services.gateway.keys import Authenticator, Rates
from services.gateway.principal import Principal


class KeyGate:
    """Knows bearers by their keys and counts what they do.

    Args:
        authenticator: Tells who bears a header.
        rates: Counts requests and tokens.
    """

    def __init__(self, authenticator: Authenticator, rates: Rates) -> None:
        self._authenticator = authenticator
        self._rates = rates

    async def enter(self, authorization: str) -> Principal:
        """Who bears this header, with one request counted.

        Raises:
            AuthenticationError: Nobody that is known.
            ResourceExhaustedError: The bearer's rate is used up.
            UnavailableError: The issuer of a token cannot be asked for its keys.
        """
        principal = await self._authenticator.authenticate(authorization)
        await self._rates.admit(principal)
        return principal

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Count tokens."""
        await self._rates.spend(principal, tokens)
