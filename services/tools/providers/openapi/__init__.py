"""Operations of an HTTP API as tools, imported from its OpenAPI document."""

from services.tools.providers.openapi.provider import OpenApiProvider

__all__ = ["OpenApiProvider"]
