"""Configuration of the inference service, section `inference` of the stack's file."""

from dataclasses import dataclass, field
from typing import Literal

from services.llama.config import Quantisation


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model that is served from the start."""

    model_id: str
    """Name by which requests address it."""
    provider_id: str = "torch"
    """Provider that serves it."""
    provider_model_id: str = ""
    """The provider's name for it: `packaged:NAME`, a folder, a file; empty means the same as model_id."""
    model_type: Literal["llm", "embedding"] = "llm"
    """What it is for."""
    metadata: dict[str, object] = field(default_factory=dict)
    """Facts kept with it; the scripted provider reads its script here."""


@dataclass(frozen=True, kw_only=True)
class TorchConfig:
    """The torch provider: our own engine in a process of its own."""

    device: str = "auto"
    """`cpu`, `cuda` or `auto`: the GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of text models; auto is bfloat16 on GPUs and on CPUs with bf16 instructions, else float32."""
    quantisation: Quantisation = "none"
    """Format of the weights of text models, made while they are loaded; a model's metadata `quantisation` overrides it.
    int8 and int4 take less memory and more time; fp8 is for GPUs."""
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


@dataclass(frozen=True, kw_only=True)
class ProvidersConfig:
    """Settings of each provider."""

    torch: TorchConfig = TorchConfig()
    """Our engine."""
    scripted: ScriptedConfig = ScriptedConfig()
    """Fixed answers for tests and demonstrations."""


EMBEDDED_DEFAULT = (
    ModelConfig(model_id="smollm2-135m", provider_model_id="packaged:smollm2-135m"),
    ModelConfig(model_id="all-minilm-l6-v2", provider_model_id="packaged:all-minilm-l6-v2", model_type="embedding"),
)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Models and providers of one inference node."""

    models: tuple[ModelConfig, ...] = EMBEDDED_DEFAULT
    """Models served from the start; further ones are registered at run time and kept over restarts."""
    providers: ProvidersConfig = ProvidersConfig()
    """Settings of the providers."""

    def __post_init__(self) -> None:
        """Refuse two models of one name."""
        names = [model.model_id for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: there are two models called {name!r}")
