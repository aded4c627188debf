"""Sampling parameters of OpenAI's requests."""

from typing import Any

from llamastack import v1
from services.gateway.jsonmap.values import wrong
from services.gateway.routes.fields import FieldReader
from stack_client.errors import InvalidArgumentError

STOPS = 16
"""Strings that may end an answer; OpenAI takes 4."""


def read_sampling(fields: FieldReader, into: v1.SamplingParams, *, many: bool) -> None:
    """Temperature, limits, penalties.

    Without temperature and top_p the service decides, which means the likeliest token; several answers to one prompt
    are drawn at OpenAI's default of 1, for they would all be the same otherwise.

    Args:
        fields: The body.
        into: What is written.
        many: Whether several answers are wanted.

    Raises:
        InvalidArgumentError: Something is wrong.
    """
    temperature = fields.number("temperature", least=0, most=2)
    top_p, top_k = fields.number("top_p", least=0, most=1), fields.whole("top_k", least=-1)
    if temperature is None and top_p is None and many:
        temperature = 1.0
    strategy = v1.SamplingStrategy()
    if temperature == 0 or top_k == 1:
        strategy.greedy.SetInParent()
    elif top_k is not None and top_k > 0:
        strategy.top_k.top_k = top_k
        _set(strategy.top_k, temperature, top_p)
    elif temperature is not None or top_p is not None:
        _set(strategy.top_p, 1.0 if temperature is None else temperature, 1.0 if top_p is None else max(top_p, 1e-6))
    if strategy.WhichOneof("strategy"):
        into.strategy.CopyFrom(strategy)
    newer, older = fields.whole("max_completion_tokens", least=1), fields.whole("max_tokens", least=1)
    if newer or older:
        into.max_tokens = newer or older or 0
    into.stop.extend(stop for stop in fields.texts("stop", most=STOPS) if stop)
    for name in ("frequency_penalty", "presence_penalty"):
        value = fields.number(name, least=-2, most=2)
        if value is not None:
            setattr(into, name, value)
    repetition = fields.number("repetition_penalty", least=0.01, most=10)
    if repetition is not None:
        into.repetition_penalty = repetition
    seed = fields.whole("seed", least=-(2**63), most=2**63 - 1)
    if seed is not None:
        into.seed = seed
    _read_bias(fields, into)


def _set(strategy: Any, temperature: float | None, top_p: float | None) -> None:  # noqa: ANN401 - of two kinds
    if temperature is not None:
        strategy.temperature = temperature
    if top_p is not None:
        strategy.top_p = top_p


def _read_bias(fields: FieldReader, into: v1.SamplingParams) -> None:
    for key, value in (fields.mapping("logit_bias") or {}).items():
        path = f"logit_bias.{key}"
        if not key.isdigit() or not key.isascii() or len(key) > 9:
            raise InvalidArgumentError(f"{path}: the key must be a token id", field=path)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(path, "a number", value)
        if not -100 <= value <= 100:
            raise InvalidArgumentError(f"{path}: {value} is out of range; give -100 to 100", field=path)
        into.logit_bias[int(key)] = value
