"""Which node gets a request: a pure function of what is known about the nodes.

Prefix affinity first, load second, session third. A node that has read the beginning of the prompt answers sooner and
reads less, but not when it is much busier than the others. Among nodes that are about equally idle, the one that
answered the session before is preferred; else the one that was chosen longest ago.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.router.config import RouterConfig

Why = Literal["prefix", "session", "load"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A node that could take a request."""

    node_id: str
    """Its name."""
    load: int
    """Requests that it has."""
    matched: int = 0
    """Blocks of the request's beginning that it has read lately."""
    last_chosen: int = 0
    """Number of the choice that it was last chosen by; lower is longer ago."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The node that is chosen, and for what."""

    node_id: str
    """Its name."""
    why: Why
    """What decided."""


def choose(candidates: Sequence[Candidate], *, sticky: str | None, rules: RouterConfig) -> Choice:
    """Choose among the candidates, at least one.

    Args:
        candidates: Nodes that could take the request.
        sticky: The node that answered the request's session before; None when there is no session.
        rules: The bounds.
    """
    least = min(candidate.load for candidate in candidates)
    best = max(candidates, key=lambda candidate: (candidate.matched, -candidate.load, -candidate.last_chosen))
    if best.matched >= rules.prefix_min_blocks and not _overloaded(best.load, least=least, rules=rules):
        return Choice(node_id=best.node_id, why="prefix")
    for candidate in candidates:
        if candidate.node_id == sticky and candidate.load - least <= rules.level_requests:
            return Choice(node_id=candidate.node_id, why="session")
    idle = min(candidates, key=lambda candidate: (candidate.load, candidate.last_chosen))
    return Choice(node_id=idle.node_id, why="load")


def _overloaded(load: int, *, least: int, rules: RouterConfig) -> bool:
    return load - least > rules.overload_requests and load > rules.overload_factor * least
