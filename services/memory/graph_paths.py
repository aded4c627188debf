"""Simple paths in a part of a graph that was loaded."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_STEPS = 200_000
"""Of one search: where the graph is so tangled that it takes more, it answers what it has found."""


class Step(NamedTuple):
    """An edge in the direction in which it may be walked."""

    origin: str
    edge_id: str
    neighbour: str


class TangledError(Exception):
    """The search took too many steps."""


def paths_of_length(steps: Iterable[Step], source: str, target: str, *, length: int) -> Iterator[tuple[Step, ...]]:
    """Paths of so many edges that visit no entity twice, ordered by entities and edges along the way.

    Raises:
        TangledError: After `MAX_STEPS`.
    """
    forward: dict[str, list[Step]] = defaultdict(list)
    backward: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        forward[step.origin].append(step)
        backward[step.neighbour].append(step.origin)
    for out in forward.values():
        out.sort(key=lambda step: (step.neighbour, step.edge_id))
    distance = _distances(backward, target, length)
    if distance.get(source, length + 1) > length:
        return
    taken, path, visited = 0, list[Step](), {source}
    stack = [iter(forward[source])]
    while stack:
        for step in stack[-1]:
            taken += 1
            if taken > MAX_STEPS:
                raise TangledError
            left = length - len(path) - 1
            if step.neighbour in visited or distance.get(step.neighbour, length + 1) > left:
                continue
            if step.neighbour == target:
                if not left:
                    yield (*path, step)
                continue
            path.append(step)
            visited.add(step.neighbour)
            stack.append(iter(forward[step.neighbour]))
            break
        else:
            stack.pop()
            if path:
                visited.discard(path.pop().neighbour)


def _distances(backward: dict[str, list[str]], target: str, limit: int) -> dict[str, int]:
    """Steps from each entity to the target, as far as the limit."""
    found, frontier = {target: 0}, [target]
    for hops in range(1, limit + 1):
        frontier = list(dict.fromkeys(one for here in frontier for one in backward[here] if one not in found))
        found.update(dict.fromkeys(frontier, hops))
    return found
