"""Labelled texts through the shields of a running stack."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from llamastack import v1
from services.runtime.together import together
from services.safety.evaluate.datasets import Labelled
from stack_client import StackClient
from stack_client.errors import InvalidArgumentError

AT_ONCE = 8
"""Calls in flight; the inference service batches them."""
_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one shield said about one text."""

    text: Labelled
    """The text with its label."""
    score: float | None
    """The shield's score; None when it could not judge."""
    flagged: bool
    """Whether it found a violation; a text that could not be judged counts as found, as it is blocked."""
    milliseconds: float
    """Of the call, as its caller saw it."""
    why_not: str = ""
    """Why there is no score."""


async def outcomes(client: StackClient, shield: str, texts: Sequence[Labelled]) -> list[Outcome]:
    """Judge texts, a few at once; in their order.

    Raises:
        StackError: If the shield does not exist or the service cannot be asked.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def judge(text: Labelled) -> Outcome:
        async with gate:
            started = time.perf_counter()
            try:
                response = await client.safety.run_shield(
                    shield, message_of(text), surface=text.surface, timeout=_SECONDS
                )
            except InvalidArgumentError as error:
                # Refused as such, for example as too long: it would not pass, and nothing was judged.
                return Outcome(text=text, score=None, flagged=True, milliseconds=0.0, why_not=error.message)
            return outcome_of(text, response, milliseconds=(time.perf_counter() - started) * 1000)

    return await together(judge(text) for text in texts)


def outcome_of(text: Labelled, response: v1.RunShieldResponse, *, milliseconds: float) -> Outcome:
    """A verdict as an outcome."""
    verdict = response.verdict
    unjudged = verdict.HasField("error") or verdict.coverage < 1 or not verdict.HasField("score")
    return Outcome(
        text=text,
        score=None if unjudged else min(1.0, max(0.0, verdict.score)),
        flagged=response.HasField("violation") or unjudged,
        milliseconds=milliseconds,
        why_not=(verdict.error.message or f"coverage {verdict.coverage:.2f}") if unjudged else "",
    )


def message_of(text: Labelled) -> list[v1.Message]:
    """The text as the last message of a dialog, in the role that its surface has."""
    content = v1.InterleavedContent(items=[v1.ContentItem(text=text.text)])
    if text.surface in {"assistant", "code", "tool_arguments"}:
        question = v1.Message(user=v1.UserMessage(content=v1.InterleavedContent(items=[v1.ContentItem(text="Go on.")])))
        return [question, v1.Message(assistant=v1.CompletionMessage(content=content))]
    return [v1.Message(user=v1.UserMessage(content=content))]
