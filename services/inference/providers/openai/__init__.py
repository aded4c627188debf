"""Models behind OpenAI-compatible endpoints: vLLM, SGLang, llama.cpp's server, TGI, Ollama, NIM and others."""

from services.inference.providers.openai.provider import OpenAIProvider

__all__ = ["OpenAIProvider"]
