"""The engine's nouns: what it is asked for and what it gives back at every step."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishCause = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token of a request is chosen."""

    temperature: float = 0.0
    """Divides the logits; 0 means greedy."""
    top_p: float = 1.0
    """Share of probability kept, in (0, 1]."""
    top_k: int = 0
    """Tokens kept; 0 means all."""
    repetition_penalty: float = 1.0
    """Weakens the logits of tokens in prompt or answer when above 1 (arXiv:1909.05858, section 4.1)."""
    frequency_penalty: float = 0.0
    """Subtracted per earlier use in the answer."""
    presence_penalty: float = 0.0
    """Subtracted once for tokens used in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of single token ids."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a fresh seed."""
    top_logprobs: int | None = None
    """Alternatives reported per token; None reports nothing, 0 only the chosen token."""
    asked_tokens: tuple[int, ...] = ()
    """Tokens whose log probability is reported beside each token, likely or not; only with `top_logprobs`."""

    @property
    def changes_logits(self) -> bool:
        """Whether anything but temperature and truncation touches the logits."""
        return bool(
            self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty or self.logit_bias
        )


class Calls(NamedTuple):
    """An answer that may be tool calls or text, as two grammars in llguidance's form that have no answer in common."""

    calls: str
    """Calls."""
    text: str
    """What does not begin as a call does. An answer that can only be text any more is no longer held to it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to continue."""

    request_id: str
    """Unique among the requests in flight."""
    prompt_ids: tuple[int, ...]
    """Token ids of the prompt, at least one."""
    max_tokens: int
    """New tokens at most, at least 1; prompt and new tokens together fit the model's context."""
    stop_ids: frozenset[int] = frozenset()
    """Token ids that end the answer; the one that was met is emitted and counted."""
    sampling: Sampling = Sampling()
    grammar: str = ""
    """What the answer must match, in llguidance's form; empty means free text."""
    calls: Calls | None = None
    """Calls that the answer may be instead of what `grammar` says; None allows none."""
    tenant: str = ""
    """Whose request it is: cached prefixes are never shared between tenants, and waiting is fair between them."""
    adapter: str = ""
    """LoRA adapter; part of what a cached prefix depends on."""
    priority: int = 0
    """Higher ones are admitted first and give up their blocks last."""


class Logprobs(NamedTuple):
    """Log probabilities of one position, before temperature and penalties."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token id, log probability), most likely first."""
    asked: tuple[float, ...] = ()
    """Of `Sampling.asked_tokens`, in their order."""


class Emission(NamedTuple):
    """One new token of one request."""

    request_id: str
    token_id: int
    finish: FinishCause | None
    """Set on the request's last token."""
    logprobs: Logprobs | None
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""


class Figures(NamedTuple):
    """How an engine is doing after a step. What counts up begins at 0 with the engine."""

    waiting: int
    """Requests that wait."""
    running: int
    """Requests in the batch."""
    running_limit: int
    """Requests that share the batch at most."""
    held: int
    """Blocks that requests hold."""
    blocks: int
    """Blocks in all."""
    block_size: int
    """Tokens per block."""
    preemptions: int
    """Times a request gave up its blocks, so far."""
    prefix_queried: int
    """Prompt tokens looked up in the prefix cache, so far; once per request."""
    prefix_hit: int
    """Of these, tokens that it served."""
    rows: int
    """Rows computed so far."""
    waiting_adapters: tuple[tuple[str, int], ...] = ()
    """Waiting requests by LoRA adapter, without those of the base model."""
    running_adapters: tuple[tuple[str, int], ...] = ()
    """Running requests by LoRA adapter, without those of the base model."""


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """How much one engine takes on at a time."""

    step_tokens: int = 512
    """Rows per step at most; longer prompts are read in chunks."""
    running_requests: int = 32
    """Requests that share the batch; more wait."""
    cached_tokens: int = 131_072
    """Tokens that the key/value cache holds, of running requests and of prefixes kept for later; the engine's process
    takes 0 as what `memory.fitting_tokens` finds."""
    block_size: int = 16
    """Tokens per block of the cache; a prefix is shared in whole blocks."""

    @property
    def blocks(self) -> int:
        """Blocks of the cache."""
        return -(-self.cached_tokens // self.block_size)
