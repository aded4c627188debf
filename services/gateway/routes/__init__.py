"""The routes: one module per API, each with a function that makes its rows of the table."""

from collections.abc import Callable, Sequence

from services.gateway.edge import Edge
from services.gateway.routes import (
    banks,
    chat,
    completions,
    embeddings,
    inference,
    inspect,
    models,
    safety,
    tools,
    vectors,
)
from services.gateway.routing import Route

TABLES: Sequence[Callable[[Edge], Sequence[Route]]] = (
    chat.routes,
    completions.routes,
    embeddings.routes,
    models.routes,
    inference.routes,
    safety.routes,
    tools.routes,
    vectors.routes,
    banks.routes,
)
"""Every module's rows. Adding an API is a module and a line here."""


def all_routes(edge: Edge) -> list[Route]:
    """The whole table, with the rows that tell of it."""
    found = [route for table in TABLES for route in table(edge)]
    return [*found, *inspect.routes(edge, found)]
