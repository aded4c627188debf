"""The routes: one module per API, each with a function that makes its rows of the table."""

from collections.abc import Callable, Sequence

from services.gateway.edge import Edge
from services.gateway.routes import (
    about,
    agents,
    alpha,
    banks,
    batches,
    chat,
    chat_store,
    completions,
    conversations,
    embeddings,
    evaluation,
    files,
    inference,
    inspect,
    models,
    responses,
    safety,
    telemetry,
    tools,
    training,
    vector_stores,
    vectors,
)
from services.gateway.routing import Route

TABLES: Sequence[Callable[[Edge], Sequence[Route]]] = (
    chat.routes,
    chat_store.routes,
    completions.routes,
    embeddings.routes,
    models.routes,
    inference.routes,
    safety.routes,
    tools.routes,
    vectors.routes,
    banks.routes,
    files.routes,
    vector_stores.routes,
    agents.routes,
    responses.routes,
    conversations.routes,
    training.routes,
    evaluation.routes,
    telemetry.routes,
    batches.routes,
)
"""Every module's rows. Adding an API is a module and a line here."""


def all_routes(edge: Edge) -> list[Route]:
    """The whole table, with the rows that tell of it."""
    found = [route for table in TABLES for route in table(edge)]
    found += inspect.routes(edge, found)
    found += alpha.routes(found)
    return [*found, *about.routes(edge, found)]
