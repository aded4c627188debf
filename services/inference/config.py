"""Configuration of the inference service, section `inference` of the stack's file."""

import os
from dataclasses import dataclass, field
from typing import Literal

from services.inference.packaged import is_installed
from services.llama.config import Quantisation


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model that is served from the start."""

    model_id: str
    """Name by which requests address it."""
    provider_id: str = "torch"
    """Provider that serves it."""
    provider_model_id: str = ""
    """The provider's name for it: `packaged:NAME`, a folder, a file, a Hugging Face hub id such as
    `meta-llama/Llama-Guard-3-1B`; empty means the same as model_id."""
    model_type: Literal["llm", "embedding", "classifier", "rerank"] = "llm"
    """What it is for."""
    metadata: dict[str, object] = field(default_factory=dict)
    """Facts kept with it; the scripted provider reads its script here."""


@dataclass(frozen=True, kw_only=True)
class TorchConfig:
    """The torch provider: our own engine in a process of its own."""

    device: str = "auto"
    """`cpu`, `cuda` or `auto`: the GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of text models; auto is bfloat16 on GPUs and on CPUs with bf16 instructions, else float32.
    Whoever names one gets plain PyTorch in it."""
    quantisation: Literal["auto"] | Quantisation = "auto"
    """Format of the weights of text models, made while they are loaded; a model's metadata `quantisation` overrides it.
    auto is int8 on CPUs that run the compiled kernels (KL to bfloat16 below 0.01 on the default model), none elsewhere
    and wherever `dtype` is given. int4 loses little only on weights that were shipped in 4-bit blocks. Without the
    kernels int8 and int4 take less memory and more time. fp8 is for GPUs."""
    tensor_parallel: int = 1
    """Processes that compute each text model together, on a GPU each: every one loads only its share of the weights."""
    threads: int = 0
    """CPU threads of the engine; 0 means as many as the process may use."""
    step_tokens: int = 512
    """Rows per step at most; longer prompts are read in chunks."""
    running_requests: int = 32
    """Requests that share a batch; more wait."""
    waiting_requests: int = 256
    """Requests that wait at most; more are refused with RESOURCE_EXHAUSTED."""
    cached_tokens: int = 0
    """Tokens that the key/value cache holds, of running requests and of prefixes kept for later; 0 means as many as fit
    into a quarter of the free memory (half on a GPU), at most 131072."""
    block_size: int = 16
    """Tokens per block of the cache; a prefix is shared in whole blocks."""

    def __post_init__(self) -> None:
        """Refuse what the engine could not work with."""
        for name in ("tensor_parallel", "step_tokens", "running_requests", "waiting_requests", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")
        if self.threads < 0 or self.cached_tokens < 0:
            raise ValueError("threads, cached_tokens: give 0 (automatic) or more")
        if self.device.partition(":")[0] not in {"auto", "cpu", "cuda"}:
            raise ValueError(f"device: {self.device!r} is none of auto, cpu, cuda")
        if self.tensor_parallel > 1 and ":" in self.device:
            raise ValueError(f"tensor_parallel: {self.tensor_parallel} processes take a GPU each; set device to cuda")


@dataclass(frozen=True, kw_only=True)
class ScriptedConfig:
    """The scripted provider; it has no settings: each model carries its script in its metadata."""


Dialect = Literal["openai", "vllm", "sglang", "llamacpp"]


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """One OpenAI-compatible endpoint."""

    base_url: str
    """Where its API begins, for example `http://gpu-1:8000/v1`."""
    dialect: Dialect = "openai"
    """What it understands beyond OpenAI's API; with `openai`, top_k, repetition_penalty, regular expressions, choices,
    grammars and tokenizing are refused."""
    api_key_env: str = ""
    """Environment variable that holds its key; empty sends none."""
    connect_seconds: float = 5.0
    """Time to connect."""
    read_seconds: float = 300.0
    """Longest silence in an answer, the first token's prefill included."""
    wait_seconds: float = 60.0
    """Time that a model's load waits for the endpoint to start."""
    max_in_flight: int = 256
    """Requests at once at most; more are refused with RESOURCE_EXHAUSTED."""

    def __post_init__(self) -> None:
        """Refuse what no request could be sent with."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url: {self.base_url!r} is no URL; write http://host:port/v1 or https://...")
        if self.connect_seconds <= 0 or self.read_seconds <= 0 or self.wait_seconds < 0:
            raise ValueError("connect_seconds, read_seconds: give more than 0; wait_seconds: 0 or more")
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight: {self.max_in_flight} is too small; give at least 1")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ValueError(f"api_key_env: the environment variable {self.api_key_env} is not set")


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """The openai provider: models behind OpenAI-compatible endpoints."""

    endpoints: dict[str, EndpointConfig] = field(default_factory=dict)
    """Endpoints by a name of yours; a model names its own in its metadata as `endpoint` where there are several."""


@dataclass(frozen=True, kw_only=True)
class RouterLink:
    """How this node joins a router."""

    address: str
    """The router: `host:port` or `unix:/path`."""
    advertise: str
    """Where the router reaches this node: `host:port` or `unix:/path`."""
    node_id: str = ""
    """Name of this node, unique at its router; empty means the advertised address."""
    renew_seconds: float = 2.0
    """Time between two renewals of the lease; a third of the router's `lease_seconds` where that is less."""

    def __post_init__(self) -> None:
        """Refuse what could never register."""
        if not self.address or not self.advertise:
            raise ValueError("address, advertise: give the router's address and this node's own")
        if self.renew_seconds <= 0:
            raise ValueError(f"renew_seconds: {self.renew_seconds:g} is too small; give more than 0")


@dataclass(frozen=True, kw_only=True)
class ProvidersConfig:
    """Settings of each provider."""

    torch: TorchConfig = TorchConfig()
    """Our engine."""
    scripted: ScriptedConfig = ScriptedConfig()
    """Fixed answers for tests and demonstrations."""
    openai: OpenAIConfig = OpenAIConfig()
    """OpenAI-compatible endpoints elsewhere."""


_PACKAGED_DEFAULT = (
    ModelConfig(model_id="smollm2-135m", provider_model_id="packaged:smollm2-135m"),
    ModelConfig(model_id="all-minilm-l6-v2", provider_model_id="packaged:all-minilm-l6-v2", model_type="embedding"),
)
_TOOL_TEXT_DETECTOR = ModelConfig(
    model_id="tool-text-detector", provider_model_id="packaged:tool-text-detector", model_type="classifier"
)


def embedded_default() -> tuple[ModelConfig, ...]:
    """The packaged models: text and embeddings, and the detector of commands in tool text where it is installed."""
    return (*_PACKAGED_DEFAULT, _TOOL_TEXT_DETECTOR) if is_installed("tool-text-detector") else _PACKAGED_DEFAULT


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Models and providers of one inference node."""

    models: tuple[ModelConfig, ...] = field(default_factory=embedded_default)
    """Models served from the start; further ones are registered at run time and kept over restarts."""
    providers: ProvidersConfig = ProvidersConfig()
    """Settings of the providers."""
    router: RouterLink | None = None
    """The router that this node joins; unset means none."""

    def __post_init__(self) -> None:
        """Refuse two models of one name."""
        names = [model.model_id for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: there are two models called {name!r}")
