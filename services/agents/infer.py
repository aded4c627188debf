"""Inference steps of a turn: with their shields, tried again while the inference service is away, and summaries."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from llamastack import v1
from services.agents import budget, compaction, history, ledger, shields
from services.agents.config import AgentsConfig
from services.agents.speaker import Speaker
from services.agents.turn_log import TurnLog, new_step, now
from stack_client.calls import EventStream
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError, UnsupportedError
from stack_client.inference import Inference

logger = logging.getLogger(__name__)

REPEATED_CALLS = 3
BYTES_PER_TOKEN = 4
"""Where a model cannot tell its tokens; English text has a little more."""
_SHORTER = (2_000, 500, 100)
"""Characters of a message that a summariser reads: fewer where its window is too small."""


@dataclass
class Ending:
    """How an answer ended, as far as shields are concerned."""

    verdicts: list[v1.Verdict] = field(default_factory=list)
    """What was found in the answer that does not block."""
    blocked: v1.ChatCompletionBlocked | None = None
    """What a shield withheld."""


class InferenceSteps:
    """Takes inference steps of one turn.

    Args:
        log: Of the turn.
        speaker: The agent and its tools.
        earlier: Turns of the session before this one.
        inference: The inference service.
        limits: Of the service.
        before: What stands before the session's turns.
        max_output_tokens: Of all answers of the turn; None: no bound.
    """

    def __init__(
        self,
        log: TurnLog,
        *,
        speaker: Speaker,
        earlier: Sequence[v1.Turn],
        inference: Inference,
        limits: AgentsConfig,
        before: Sequence[v1.Message] = (),
        max_output_tokens: int | None = None,
    ) -> None:
        self._log = log
        self._turn = log.turn
        self._before = before
        self._max_output_tokens = max_output_tokens
        self._speaker = speaker
        self._config = speaker.config
        self._earlier = earlier
        self._inference = inference
        self._limits = limits
        self._attempts = limits.inference_attempts
        self._pause = limits.inference_retry_seconds
        self._dropped = 0
        """Parts of the history that are left out; found out by trying."""
        self._sees = True
        """Whether the model is shown images that tools gave; found out by trying."""

    async def run(self, last: v1.Step | None) -> None:
        """One inference step with its shields; tried again while the inference service is unavailable.

        Args:
            last: The step before; an inference step that is not complete begins anew.

        Raises:
            StackError: If the model cannot answer.
        """
        if last is not None and last.WhichOneof("details") == "inference":  # a process ended in the middle of it
            step = v1.Step()
            step.CopyFrom(last)
            attempt = await self._log.attempts(step.step_id) + 1
        else:
            step, attempt = new_step(self._turn, v1.STEP_TYPE_INFERENCE, inference=v1.InferenceStep()), 1
        guard = shields.InputStep(self._log, self._config, inference=step)
        await guard.begin()
        for failures in range(1, self._attempts + 1):
            if not guard.waiting:
                self._begin(step, attempt)
            try:
                end = await self._shown(step, guard, attempt)
                break
            except (UnavailableError, ResourceExhaustedError) as error:
                overload = isinstance(error, ResourceExhaustedError)
                if failures == self._attempts or (overload and error.retry_after is None):
                    raise
                logger.warning("inference unavailable turn=%s attempt=%d: %s", step.turn_id, attempt, error.message)
                await asyncio.sleep(max(error.retry_after or 0.0, self._pause * 2 ** (failures - 1)))
                if not guard.waiting:
                    attempt += 1
        if end.blocked is not None and end.blocked.surface not in shields.OUTPUT_SURFACES:
            guard.block(end.blocked)
            self._withhold(end.blocked)
        else:
            self._complete_inference(step, end)
        # No commit of its own: the intent of the first tool, or the end of the turn, is stored with it.

    def _complete_inference(self, step: v1.Step, end: "Ending") -> None:
        step.completed_at.CopyFrom(now())
        self._log.put_step(step)
        budget.count(self._turn, step.inference.usage, self._config.budget)
        self._log.add(
            step_complete=v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step)
        )
        if self._config.output_shields:
            shields.output_step(self._log, end.verdicts, end.blocked)
        if end.blocked is not None:
            self._withhold(end.blocked)

    def _withhold(self, blocked: v1.ChatCompletionBlocked) -> None:
        """End the turn as a shield wants it: with what was shown before, and its message to the user."""
        said = v1.CompletionMessage(stop_reason=v1.STOP_REASON_END_OF_TURN)
        said.content.items.extend(blocked.completion_message.content.items)
        gap = "\n\n" if said.content.items else ""
        said.content.items.append(v1.ContentItem(text=f"{gap}{blocked.user_message}"))
        self.complete_turn(said)

    def _begin(self, step: v1.Step, attempt: int) -> None:
        """Announce an inference step, or that it begins anew."""
        kind, step_id = step.step_type, step.step_id
        if attempt == 1:
            self._log.put_step(step)
            self._log.add(step_start=v1.TurnStepStart(step_type=kind, step_id=step_id))
        else:
            restarted = v1.TurnStepRestarted(step_type=kind, step_id=step_id, attempt=attempt)
            self._log.add(step_restarted=restarted)

    async def _shown(self, step: v1.Step, guard: "shields.InputStep", attempt: int) -> "Ending":
        """One answer; a model that reads text only is asked again without the images that tools gave."""
        try:
            return await self._generate(step, guard, attempt)
        except UnsupportedError as error:  # raised before the first event
            if not self._sees or not error.field.endswith(".image"):
                raise
            self._sees = False
            return await self._generate(step, guard, attempt)

    async def _generate(self, step: v1.Step, guard: "shields.InputStep", attempt: int) -> "Ending":
        """Stream one answer of the model into the log; commits run beside the stream, each taking what has gathered."""
        chat = self._chat_request()
        chat.input_shields.extend(self._config.input_shields if guard.waiting else ())
        stream = self._inference.stream(v1.StreamChatCompletionRequest(request=chat))
        end = Ending()
        await self._log.committing(self._read(stream, step, guard, attempt, chat=chat, end=end))
        return end

    async def _read(
        self,
        stream: EventStream[v1.StreamChatCompletionResponse],
        step: v1.Step,
        guard: shields.InputStep,
        attempt: int,
        *,
        chat: v1.ChatCompletionRequest,
        end: Ending,
    ) -> None:
        async with stream:
            async for event in stream:
                match event.WhichOneof("event"):
                    case "judged" if event.judged.surface not in shields.OUTPUT_SURFACES:
                        shields.take_redactions(self._log, len(chat.messages), event.judged.redacted)
                        guard.complete(event.judged.verdicts)
                        self._begin(step, attempt)
                    case "judged":
                        end.verdicts = list(event.judged.verdicts)
                    case "progress":
                        self._progress(step, event.progress)
                    case "complete":
                        complete = event.complete
                        step.inference.model_response.CopyFrom(complete.completion_message)
                        step.inference.usage.CopyFrom(complete.usage)
                    case "blocked":
                        end.blocked = event.blocked
                        step.inference.model_response.CopyFrom(event.blocked.completion_message)
                        step.inference.usage.CopyFrom(event.blocked.usage)

    def _progress(self, step: v1.Step, progress: v1.ChatCompletionProgress) -> None:
        shown = v1.TurnStepProgress(step_type=step.step_type, step_id=step.step_id, delta=progress.delta)
        shown.logprobs.extend(progress.logprobs)
        self._log.add(step_progress=shown)

    def out_of_tokens(self) -> bool:
        """Whether the answers of the turn have all tokens that they may have."""
        most = self._max_output_tokens
        return most is not None and self._turn.usage.completion_tokens >= most

    def complete_turn(self, said: v1.CompletionMessage) -> None:
        """End the turn with an answer."""
        turn = self._turn
        turn.output_message.CopyFrom(said)
        turn.status = v1.TURN_STATUS_COMPLETED
        turn.completed_at.CopyFrom(now())
        self._log.add(turn_complete=v1.TurnComplete(turn=turn))

    def _chat_request(self) -> v1.ChatCompletionRequest:
        config = self._config
        tool_config = v1.ToolConfig()
        tool_config.CopyFrom(config.tool_config)
        called = [step.tool_execution for step in self._turn.steps if step.WhichOneof("details") == "tool_execution"]
        if called and _demands(tool_config):
            # A required call holds for the first step only; otherwise the turn could never end.
            tool_config.tool_choice = "auto"
        if ledger.repeats(called, REPEATED_CALLS):
            # A model that goes in circles has its answer; without tools it must use it.
            tool_config.tool_choice = "none"
        sampling = v1.SamplingParams()
        sampling.CopyFrom(config.sampling_params)
        if self._max_output_tokens is not None:
            sampling.max_tokens = max(1, self._max_output_tokens - self._turn.usage.completion_tokens)
        formatted = config.HasField("response_format")
        if self.taken() + 1 >= self.most and (formatted or called):
            # The last step must answer: nobody would make its calls.
            tool_config.tool_choice = "none"
        most = config.max_tool_calls
        if most and not self._has_client_tools() and ledger.served(self._turn.steps, self._speaker.tools) >= most:
            tool_config.tool_choice = "none"
        messages = history.without_oldest(self._messages(), self._dropped)
        return v1.ChatCompletionRequest(
            model_id=config.model,
            messages=messages if self._sees else history.without_images(messages),
            sampling_params=sampling,
            tools=[tool.declared() for tool in self._speaker.tools.values()],
            tool_config=tool_config,
            # A step that must call a tool is not the one that answers.
            response_format=config.response_format if formatted and not _demands(tool_config) else None,
            output_shields=config.output_shields,
            logprobs=config.logprobs if config.HasField("logprobs") else None,
            priority=config.priority,
            show_thoughts=config.show_thoughts,
        )

    def _messages(self) -> list[v1.Message]:
        return history.dialog(self._config, self._earlier, self._turn, before=self._before)

    def _has_client_tools(self) -> bool:
        return any(tool.kind == "client" for tool in self._speaker.tools.values())

    def drop_oldest(self, error: InvalidArgumentError | None) -> bool:
        """Leave more of the oldest history out of the next prompts; False where nothing can be.

        Args:
            error: As the model refused the last prompt; its metadata tells how much too long that was.
        """
        messages = self._messages()
        parts = history.droppable(messages)[self._dropped :]
        facts = error.metadata if error is not None else {}
        tokens, window = int(facts.get("prompt_tokens", 0)), int(facts.get("context_length", 0))
        share = max(0.0, 1 - window / tokens) if tokens and window else 0.0
        spare = share * sum(one.ByteSize() for one in history.without_oldest(messages, self._dropped))
        for count, part in enumerate(parts, 1):
            spare -= sum(messages[index].ByteSize() for index in part)
            if spare <= 0 or count == len(parts):
                self._dropped += count
                break
        return bool(parts)

    @property
    def most(self) -> int:
        """Inference steps that the turn may take."""
        config = self._config
        return config.max_infer_iters if config.HasField("max_infer_iters") else self._limits.max_infer_iters

    def taken(self) -> int:
        """Inference steps that are complete."""
        steps = self._turn.steps
        return sum(step.WhichOneof("details") == "inference" and step.HasField("completed_at") for step in steps)

    async def too_long(self) -> bool:
        """Whether the next prompt has more tokens than the agent's bound."""
        bound = self._config.compaction.max_prompt_tokens
        if not bound:
            return False
        chat = self._chat_request()
        if chat.ByteSize() <= bound:  # a token has at least one byte
            return False
        dialog = v1.Dialog(messages=chat.messages)
        request = v1.TokenizeRequest(
            model_id=chat.model_id, dialog=dialog, tools=chat.tools, tool_config=chat.tool_config
        )
        try:
            return len((await self._inference.tokens(request)).token_ids) > bound
        except UnsupportedError:  # a model behind an endpoint that does not tell
            return chat.ByteSize() > bound * BYTES_PER_TOKEN

    async def compact(self, cut: compaction.Cut) -> None:
        """Replace older history by a summary, as a step of its own.

        Raises:
            StackError: If the summarising model cannot answer.
        """
        step = new_step(self._turn, v1.STEP_TYPE_COMPACTION, compaction=v1.CompactionStep())
        self._log.put_step(step)
        self._log.add(step_start=v1.TurnStepStart(step_type=step.step_type, step_id=step.step_id))
        await self._log.commit()
        covered = compaction.compacted(self._earlier, self._turn)
        before = covered.summary if covered else ""
        for longest in _SHORTER:
            request = compaction.summary_request(
                self._config, self._to_be_replaced(cut, covered), before=before, longest=longest
            )
            try:
                response = await self._inference.ask(request)
                break
            except InvalidArgumentError as error:
                if error.reason != "CONTEXT_LENGTH_EXCEEDED" or longest == _SHORTER[-1]:
                    raise
        step.compaction.summary = text_of(response.completion_message.content)
        step.compaction.through_turn_id, step.compaction.through_step_id = cut.turn_id, cut.step_id
        budget.count(self._turn, response.usage, self._config.budget)
        step.completed_at.CopyFrom(now())
        self._log.put_step(step)
        complete = v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step)
        self._log.add(step_complete=complete)
        await self._log.commit()

    def _to_be_replaced(self, cut: compaction.Cut, covered: v1.CompactionStep | None) -> list[v1.Message]:
        through = covered.through_turn_id if covered else ""
        if cut.step_id:
            after = covered.through_step_id if covered and through == cut.turn_id else ""
            return history.through_step(self._turn, cut.step_id, after=after)
        ids = [turn.turn_id for turn in self._earlier]
        begin = ids.index(through) + 1 if through in ids else 0
        return history.of_turns(self._earlier[begin : ids.index(cut.turn_id) + 1], self._config)


def _demands(config: v1.ToolConfig) -> bool:
    """Whether the model must call a tool."""
    return config.tool_choice not in {"", "auto", "none"}
