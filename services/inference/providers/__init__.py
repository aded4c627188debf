"""The inference providers by the name that configuration and `provider_id` use."""

from services.inference.providers.openai import OpenAIProvider
from services.inference.providers.scripted import ScriptedProvider
from services.inference.providers.torch_engine import TorchProvider

PROVIDERS = {"torch": TorchProvider, "scripted": ScriptedProvider, "openai": OpenAIProvider}
