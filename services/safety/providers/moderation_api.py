"""Moderation by an OpenAI-compatible `/v1/moderations` endpoint: its real scores, or its flag where it has none.

Parameters: `base_url` (where the API begins, with `/v1`), `model` (default: the shield's provider id), `api_key_env`
(environment variable with the key), `timeout` in seconds. The text leaves the mesh. Verdicts have in their metadata:
`categories` (the endpoint's names that it flagged), `flagged`, and `scored_by`.
"""

import asyncio
import json
import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from llamastack import v1
from services.safety import params as read
from services.safety.guard.moderations import Moderation, code_of, read_moderation
from services.safety.guard.profiles import UNSPECIFIED
from services.safety.shield import Judgement, ProviderContext, Shield, Subject, Surface
from stack_client.errors import DeadlineExceededError, FailedPreconditionError, UnavailableError

MAX_ANSWER = 256 * 1024
"""Bytes of an answer; a real one has less than four thousand."""
_REFUSED = {401, 403}
_LATER = {408, 425, 429}

DEFAULT_THRESHOLD = 0.5


class ModerationApiProvider:
    """Makes shields of moderation endpoints."""

    provider_type = "remote::openai-moderation"

    def __init__(self, context: ProviderContext) -> None:
        """Takes nothing from the mesh: the endpoint is elsewhere."""

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> Shield:
        """A shield; the endpoint is not asked before the first judgement."""
        read.refuse_unknown(params, ("base_url", "model", "api_key_env", "timeout"))
        base_url = read.text(params, "base_url")
        if not _is_url(base_url):
            raise read.refusal("base_url", f"is {base_url!r}; write where the API begins, such as https://host/v1")
        key_env = read.text(params, "api_key_env")
        if key_env and not os.environ.get(key_env):
            raise read.refusal("api_key_env", f"names {key_env}, which is not set in the safety service's environment")
        return ModerationShield(
            url=f"{base_url.rstrip('/')}/moderations",
            model=read.text(params, "model", shield.provider_resource_id),
            key_env=key_env,
            seconds=read.number(params, "timeout", default=10.0, low=0.05, high=300),
        )


class ModerationShield:
    """One endpoint and model."""

    baseline = False
    streams = True
    every_message = False

    def __init__(self, *, url: str, model: str, key_env: str, seconds: float) -> None:
        self._url = url
        self._model = model
        self._key_env = key_env
        self._seconds = seconds
        self._tls: ssl.SSLContext | None = None

    def default_threshold(self, surface: Surface) -> float:  # noqa: ARG002 (the same everywhere)
        """0.5."""
        return DEFAULT_THRESHOLD

    async def judge(self, subject: Subject) -> Judgement:
        """Send the text to the endpoint."""
        raw = await self._post(subject.text)
        facts: dict[str, Any] = {
            "model": self._model,
            "guard_calls": 1,
            "guard_bytes": len(subject.text.encode()),
        }
        try:
            found = read_moderation(json.loads(raw))
        except ValueError as error:  # also JSON's own
            return Judgement(failure=f"{self._url} answered with no moderation: {error}", **facts)
        return _judgement(found, subject.threshold, facts)

    async def _post(self, text: str) -> bytes:
        key = os.environ.get(self._key_env, "") if self._key_env else ""
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {})
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        body = {"model": self._model, "input": text}
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpx.AsyncClient(
                    verify=self._tls,
                    follow_redirects=False,  # a redirect would carry text and key to a place that nobody configured
                    trust_env=False,
                    timeout=None,  # noqa: S113 (the whole exchange has one, above)
                ) as client,
                client.stream("POST", self._url, json=body, headers=headers) as response,
            ):
                self._check(response)
                return await self._body(response)
        except TimeoutError:
            message = f"{self._url} did not answer within {self._seconds:g} s"
            raise DeadlineExceededError(message) from None
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self._url} cannot be asked now: {type(error).__name__}: {error}") from error

    async def _body(self, response: httpx.Response) -> bytes:
        parts = bytearray()
        # Undecoded: a few compressed bytes could become gigabytes.
        async for part in response.aiter_raw():
            parts += part
            if len(parts) > MAX_ANSWER:
                raise UnavailableError(f"{self._url} answered with more than {MAX_ANSWER} bytes")
        return bytes(parts)

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in _REFUSED:
            message = f"{self._url} refused the key with status {status}; check params.api_key_env"
            raise FailedPreconditionError(message)
        if status in _LATER or status >= 500:
            raise UnavailableError(f"{self._url} answered with status {status}; ask again later", retry_after=1.0)
        if status != 200:
            raise FailedPreconditionError(
                f"{self._url} answered with status {status}; check params.base_url and params.model"
            )


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in {"http", "https"} and bool(url.hostname)


def _judgement(found: Moderation, threshold: float, facts: Mapping[str, Any]) -> Judgement:
    scores: dict[str, float] = {}
    for name, score in found.scores.items():
        scores[code_of(name)] = max(scores.get(code_of(name), 0.0), score)
    over = [name for name, score in found.scores.items() if score >= threshold]
    names = dict.fromkeys([*found.categories, *over])
    codes = tuple(dict.fromkeys(code_of(name) for name in names))
    by_score = bool(scores)
    if found.flagged and not codes:
        codes = (UNSPECIFIED,)
    return Judgement(
        codes=codes,
        # What the endpoint flagged by limits of its own counts at the default threshold too.
        score=max([*scores.values(), DEFAULT_THRESHOLD if found.flagged else 0.0])
        if by_score
        else float(found.flagged or bool(codes)),
        score_kind=v1.SCORE_KIND_MODEL_PROBABILITY if by_score else v1.SCORE_KIND_UNSPECIFIED,
        category_scores=scores,
        metadata={
            "flagged": found.flagged,
            "categories": list(names),
            "scored_by": "scores" if by_score else "flag",
        },
        **facts,
    )
