"""Batches: files of requests that run in the background, survive every kill, and end as files of answers."""

from services.gateway.batches.batches import Batches
from services.gateway.batches.config import BatchesConfig
from services.gateway.batches.execute import ENDPOINTS, Execute, KnowsModel, RegisteredModels
from services.gateway.batches.migrations import upgrade
from services.gateway.batches.service import BatchesService

__all__ = [
    "ENDPOINTS",
    "Batches",
    "BatchesConfig",
    "BatchesService",
    "Execute",
    "KnowsModel",
    "RegisteredModels",
    "upgrade",
]
