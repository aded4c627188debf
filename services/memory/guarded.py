"""Retrieved text before a model reads it: judged by the shields that the policy binds to that surface."""

from collections.abc import Sequence
from dataclasses import dataclass

from llamastack import v1
from services.runtime.together import together
from stack_client.content import message, replaced
from stack_client.errors import UnavailableError
from stack_client.safety import POLICY, Safety

SURFACE = "retrieved"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What may be read of a text."""

    text: str
    """The text, maybe with parts replaced; empty when it is withheld."""
    withheld: bool
    """Whether a shield blocks it."""
    verdict_id: str
    """Of the judgement; empty where none was made."""


class Guard:
    """The safety service as retrieval sees it.

    Args:
        safety: The service; None where the stack has none: then nothing is judged.
    """

    def __init__(self, safety: Safety | None) -> None:
        self._safety = safety

    async def judge(self, texts: Sequence[str]) -> list[Judged]:
        """What may be read of each text. What cannot be judged is as the policy says: withheld unless it fails open.

        Raises:
            UnavailableError: If the safety service cannot be reached.
        """
        return await together(self._judge(text) for text in texts)

    async def _judge(self, text: str) -> Judged:
        if self._safety is None:
            return Judged(text=text, withheld=False, verdict_id="")
        try:
            response = await self._safety.run_shield(POLICY, message(text), surface=SURFACE)
        except UnavailableError as error:
            why = f"retrieved text cannot be judged now, so it is not shown: {error.message}"
            raise UnavailableError(why, retry_after=error.retry_after) from error
        verdict = response.verdict
        if verdict.action >= v1.SAFETY_ACTION_HOLD:
            return Judged(text="", withheld=True, verdict_id=verdict.verdict_id)
        if verdict.action == v1.SAFETY_ACTION_REDACT:
            spans = [
                (span.start, span.end, span.replacement if span.HasField("replacement") else f"[{span.code}]")
                for span in verdict.spans
            ]
            return Judged(text=replaced(text, spans), withheld=False, verdict_id=verdict.verdict_id)
        return Judged(text=text, withheld=False, verdict_id=verdict.verdict_id)
