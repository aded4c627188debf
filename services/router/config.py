"""Configuration of the router, section `router` of the stack's file."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """How nodes are watched and chosen."""

    lease_seconds: float = 6.0
    """Time after its last renewal in which a node still counts as alive."""
    attempts: int = 4
    """Nodes that one call is tried on at most."""
    prefix_block_bytes: int = 256
    """Bytes of a request's beginning that are compared at a time."""
    prefix_min_blocks: int = 2
    """Blocks that must match before a node is chosen for its cache."""
    prefix_blocks_kept: int = 16_384
    """Blocks remembered per node, those used longest ago dropped first."""
    overload_requests: int = 8
    """A node is not chosen for its cache when it has more requests than this above the least busy node..."""
    overload_factor: float = 1.5
    """...and more than this many times as many."""
    level_requests: int = 1
    """Nodes whose requests differ by no more than this count as equally busy, and the session decides."""
    sessions_kept: int = 16_384
    """Sessions remembered, those used longest ago dropped first."""

    def __post_init__(self) -> None:
        """Refuse what no node could be chosen with."""
        if self.lease_seconds <= 0:
            raise ValueError(f"lease_seconds: {self.lease_seconds:g} is too small; give more than 0")
        for name in ("attempts", "prefix_block_bytes", "prefix_min_blocks", "prefix_blocks_kept", "sessions_kept"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")
        if self.overload_requests < 0 or self.overload_factor < 1 or self.level_requests < 0:
            raise ValueError("overload_requests, level_requests: give 0 or more; overload_factor: 1 or more")
