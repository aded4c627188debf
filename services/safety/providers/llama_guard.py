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
from dataclasses import replace
from typing import Any

from llamastack import v1
from services.safety.guard.asking import Answer, ChatRoute, TokenRoute
from services.safety.guard.conversation import Conversation, conversation_of
from services.safety.guard.model import Tally
from services.safety.guard.quoting import quote
from services.safety.guard.target import DEFAULT_CONTEXT, GuardSettings, Target, check_model, read_settings, target_of
from services.safety.guard.verdict import judgement
from services.safety.guard.windows import plan
from services.safety.guards import Guards
from services.safety.shield import Judgement, ProviderContext, Shield, Subject, Surface
from services.safety.together import together
from stack_client.errors import FailedPreconditionError, UnavailableError, UnsupportedError

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
        conversation = conversation_of(subject, look_alikes)
        settled = len(quote(subject.text[: subject.settled], look_alikes, begins_line=False).text) - _BORDER
        try:
            return await self._ask(target, conversation, subject, settled)
        except UnsupportedError:
            if not isinstance(target.route, TokenRoute):
                raise
        # The model gives no token ids or no log probabilities after all: from now on it is asked by text.
        self._target = target = self._by_text(target)
        return await self._ask(target, conversation, subject, settled)

    async def _ask(self, target: Target, conversation: Conversation, subject: Subject, settled: int) -> Judgement:
        reading = await plan(conversation, target.route.measure, settled=settled)
        tally = Tally()
        gate = asyncio.Semaphore(_AT_ONCE)

        async def ask(index: int) -> Answer:
            async with gate:
                turns = reading.windows[index].turns
                tally.bytes += sum(len(turn.text.encode()) for turn in turns)
                return await target.route.ask(turns, subject.threshold, tally)

        answers = await together(ask(index) for index in range(len(reading.windows)))
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

    def _by_text(self, target: Target) -> Target:
        route = ChatRoute(
            target.model,
            target.categories,
            endpoint_template=False,
            with_logprobs=False,
            context=DEFAULT_CONTEXT,
            max_tokens=self._settings.max_tokens,
        )
        return replace(target, route=route)
