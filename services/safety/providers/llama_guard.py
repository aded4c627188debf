"""The Llama Guard shields: hazard categories, judged in the role and with the dialog that a text has.

Parameters: `profile` (version, see `guard.profiles`), `template` (auto, checkpoint, builtin), `excluded_categories`
(common codes), `categories` (added ones), `max_tokens` (of an answer), `test_only` (allows the packaged models, which
are no guards). Verdicts have in their metadata: `profile`, `template`, `role`, `scored_by` (logits, logprobs or text:
then 1 and 0 are no probabilities), `p_unsafe`, `outside_mass`, `own_codes`, `unknown_codes`, `excluded_codes`,
`category_names`, `findings` and `context_findings` (pieces of text that were quoted because they look like the prompt's
own), `role_mapped`, `placeholder`, `windows`, `turns_dropped`, `context_cut`.
"""

import asyncio
from collections.abc import Mapping
from re import Pattern
from typing import Any

from llamastack import v1
from services.runtime.offload import offload
from services.runtime.together import together
from services.safety.guard.asking import Answer
from services.safety.guard.conversation import Conversation, conversation_of
from services.safety.guard.model import Tally
from services.safety.guard.quoting import quote
from services.safety.guard.scores import OUTSIDE_LIMIT
from services.safety.guard.target import GuardSettings, Target, check_model, read_settings, target_of
from services.safety.guard.verdict import judgement
from services.safety.guard.windows import Window, plan
from services.safety.guards import Guards
from services.safety.shield import Judgement, ProviderContext, Shield, Subject, Surface
from stack_client.errors import FailedPreconditionError, UnavailableError

_AT_ONCE = 4  # windows of one text that are judged together
_BORDER = 80  # characters at the border of what was judged before that are judged again


class LlamaGuardProvider:
    """Makes Llama Guard shields."""

    provider_type = "inline::llama-guard"

    def __init__(self, context: ProviderContext) -> None:
        self._guards = context.guards

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> Shield:
        """A shield; `provider_resource_id` is the guard model's identifier at the inference service."""
        settings = read_settings(params)
        model = await self._guards.model(shield.provider_resource_id)
        check_model(model, settings)
        if model.state == v1.MODEL_STATE_READY:
            target_of(model, settings, self._guards)  # refuses now what every judgement would refuse
        return LlamaGuardShield(self._guards, model.identifier, settings)


class LlamaGuardShield:
    """One guard model with one set of categories."""

    baseline = False
    streams = True
    every_message = False

    def __init__(self, guards: Guards, model_id: str, settings: GuardSettings) -> None:
        self._guards = guards
        self._model_id = model_id
        self._settings = settings
        self._target: Target | None = None
        self._resolving = asyncio.Lock()

    def default_threshold(self, surface: Surface) -> float:  # noqa: ARG002 (the same everywhere)
        """0.5, where the guard's two words are equally likely."""
        return 0.5

    async def judge(self, subject: Subject) -> Judgement:
        """Ask the guard about the text, in its role and dialog, window by window where it is long."""
        target = await self._resolve()
        look_alikes = target.categories.profile.frame.look_alikes
        size = len(subject.text) + sum(message.ByteSize() for message in subject.dialog)
        conversation, settled = await offload(size, _quoted, subject, look_alikes)
        reading = await plan(conversation, target.route.measure, settled=settled)
        tally = Tally()
        gate = asyncio.Semaphore(_AT_ONCE)

        async def ask(window: Window) -> Answer:
            async with gate:
                tally.bytes += sum(len(turn.text.encode()) for turn in window.turns)
                return await target.route.ask(window, subject.threshold, tally)

        answers = await together(ask(window) for window in reading.windows)
        if any((answer.outside_mass or 0.0) > OUTSIDE_LIMIT for answer in answers):
            self._target = None  # another model may serve under this name by now: look again next time
        return judgement(target, conversation, reading, answers, threshold=subject.threshold, tally=tally)

    async def _resolve(self) -> Target:
        async with self._resolving:
            if self._target is None:
                model = await self._guards.model(self._model_id)
                check_model(model, self._settings)
                if model.state == v1.MODEL_STATE_FAILED:
                    raise FailedPreconditionError(
                        f"guard model {self._model_id!r} could not be loaded: {model.state_message}"
                    )
                if model.state != v1.MODEL_STATE_READY:
                    message = f"guard model {self._model_id!r} is still loading: {model.state_message}"
                    raise UnavailableError(message, reason="NOT_READY", retry_after=1.0)
                self._target = target_of(model, self._settings, self._guards)
            return self._target


def _quoted(subject: Subject, look_alikes: Pattern[str]) -> tuple[Conversation, int]:
    """The conversation, and how many characters of its text were judged before."""
    before = quote(subject.text[: subject.settled], look_alikes, begins_line=False).text
    return conversation_of(subject, look_alikes), len(before) - _BORDER
