"""Pages of other origins: which may call, by configuration."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from services.gateway.config import GatewayConfig

_SHOWN = ("x-request-id", "x-trace-id", "x-ignored-fields", "retry-after", "retry-after-ms")
"""Headers of answers that pages may read."""
_PREFLIGHT_SECONDS = 600


def with_cors(app: ASGIApp, config: GatewayConfig) -> ASGIApp:
    """The application, answering preflights where origins are configured; keys are sent in headers, never cookies."""
    if not config.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(config.cors_origins),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["*"],
        expose_headers=list(_SHOWN),
        max_age=_PREFLIGHT_SECONDS,
    )
