"""The loop of one turn: retrieval, inference, tools, inference, until the model has answered.

Its state is the log alone: every round looks at the steps that are stored and does the next one, so that a turn which
lost its process goes on where its log ends.
"""

import asyncio
from dataclasses import dataclass

from llamastack import v1
from services.agents import attachments, budget, compaction, decisions, ledger
from services.agents.agent_calls import AgentCalls
from services.agents.config import AgentsConfig
from services.agents.infer import InferenceSteps
from services.agents.offered import Offered
from services.agents.retrieval import Retrieval, retrieve, wants_retrieval
from services.agents.speaker import Speaker, Speakers
from services.agents.tool_step import ToolStep
from services.agents.toolbox import Toolbox
from services.agents.turn_log import TurnLog, new_step, now
from services.agents.turn_store import TurnContext
from stack_client.errors import InvalidArgumentError, StackError, to_error_message
from stack_client.inference import Inference

# Steps that stand beside the loop: what comes next does not depend on them.
_BESIDE = {"shield_call", "approval", "compaction"}


@dataclass(frozen=True, kw_only=True)
class Around:
    """What turns work with."""

    inference: Inference
    """The inference service."""
    memory: Retrieval
    """The memory service."""
    toolbox: Toolbox
    """The tools service."""
    limits: AgentsConfig
    """Of the service."""


class TurnLoop:
    """Runs one turn to its end, or to where it waits for its caller.

    Args:
        log: Of the turn.
        context: The request that created the turn, and its agent.
        earlier: Turns of the session before this one.
        speakers: Finds the agent that speaks, and its tools.
        around: What turns work with.
        agents: Lets other agents answer calls.
    """

    def __init__(
        self,
        log: TurnLog,
        *,
        context: TurnContext,
        earlier: list[v1.Turn],
        speakers: Speakers,
        around: Around,
        agents: AgentCalls,
    ) -> None:
        self._log = log
        self._turn = log.turn
        self._context = context
        self._earlier = earlier
        self._speakers = speakers
        self._around = around
        self._agents = agents
        self._speaker: Speaker

    async def run(self) -> None:
        """Take the next step until the turn ends or waits; the last events are added, their commit is the caller's.

        Raises:
            StackError: If a step failed.
        """
        turn = self._turn
        if turn.status == v1.TURN_STATUS_QUEUED:
            self._log.add(turn_start=v1.TurnStart(turn_id=turn.turn_id))
        if turn.status in {v1.TURN_STATUS_AWAITING_INPUT, v1.TURN_STATUS_NEEDS_ATTENTION}:
            decisions.resume(turn)  # an approval has expired
        turn.status = v1.TURN_STATUS_RUNNING
        await self._speak()
        limit = self._speaker.config.budget
        try:
            async with asyncio.timeout(budget.seconds_left(turn, limit)) as clock:
                while turn.status == v1.TURN_STATUS_RUNNING:
                    await self._next_step()
        except TimeoutError:
            if clock.expired():
                raise budget.out_of_time(limit) from None
            raise

    async def _speak(self) -> None:
        """Let the agent speak that has the dialog."""
        self._speaker = await self._speakers.find(self._log, self._context, self._earlier)
        self._infer = InferenceSteps(
            self._log,
            speaker=self._speaker,
            earlier=self._earlier,
            inference=self._around.inference,
            limits=self._around.limits,
            before=self._context.history,
            max_output_tokens=self._context.max_output_tokens,
        )

    async def _next_step(self) -> None:
        """Do what the log's last step calls for."""
        last = next((step for step in reversed(self._turn.steps) if step.WhichOneof("details") not in _BESIDE), None)
        config = self._speaker.config
        match last.WhichOneof("details") if last else None:
            case "inference" if last and last.HasField("completed_at"):
                said = last.inference.model_response
                if said.tool_calls and self._infer.taken() < self._infer.most and not self._infer.out_of_tokens():
                    await self._call_tools(said)
                else:
                    self._infer.complete_turn(said)
            case "tool_execution" if last and not last.HasField("completed_at"):
                await self._run_tools(last)
            case None if wants_retrieval(config) or self._attached():
                await self._retrieve()
            case "memory_retrieval" if last and not last.HasField("completed_at"):
                await self._retrieve()
            case _:
                await self._generate(last)

    async def _retrieve(self) -> None:
        await retrieve(
            self._log,
            self._speaker.config,
            memory=self._around.memory,
            limits=self._around.limits,
            documents=attachments.searched(self._context.request.documents),
            attached=self._attached(),
        )

    def _attached(self) -> str:
        """The bank with documents of the session's questions; empty where there are none."""
        bank = attachments.bank_of(self._turn.session_id)
        if attachments.searched(self._context.request.documents):
            return bank
        before = (step.memory_retrieval.vector_db_ids for turn in self._earlier for step in turn.steps)
        return bank if any(bank in names.split(",") for names in before) else ""

    async def _generate(self, last: v1.Step | None) -> None:
        """One inference step; history that does not fit the model is summarised before it."""
        budget.check_spent(self._turn, self._speaker.config.budget)
        while await self._infer.too_long():
            if not await self._compact():
                break
        while True:
            try:
                await self._infer.run(last)
                return
            except InvalidArgumentError as error:
                if error.reason != "CONTEXT_LENGTH_EXCEEDED" or not await self._compact(error):
                    raise
                last = next((s for s in reversed(self._turn.steps) if s.WhichOneof("details") not in _BESIDE), None)

    async def _compact(self, error: InvalidArgumentError | None = None) -> bool:
        """Summarise what can go next, or leave it out; False where nothing can."""
        if self._speaker.config.compaction.drop_oldest:
            return self._infer.drop_oldest(error)
        cut = compaction.next_cut(self._earlier, self._turn, self._speaker.config.compaction)
        if cut is None:
            return False
        await self._infer.compact(cut)
        return True

    async def _call_tools(self, said: v1.CompletionMessage) -> None:
        """Begin a tool step: a line for each call, and what people must decide about."""
        step = new_step(
            self._turn, v1.STEP_TYPE_TOOL_EXECUTION, tool_execution=v1.ToolExecutionStep(tool_calls=said.tool_calls)
        )
        tools, place = self._speaker.tools, len(self._turn.steps)
        served = ledger.served(self._turn.steps, tools)
        ledger.begin(step, place=place, tools=tools, config=self._speaker.config, served=served)
        self._log.put_step(step)
        self._log.add(step_start=v1.TurnStepStart(step_type=step.step_type, step_id=step.step_id))
        for call in said.tool_calls:
            delta = v1.ToolCallDelta(call=call, parse_status=v1.TOOL_CALL_PARSE_STATUS_IN_PROGRESS)
            progress = v1.TurnStepProgress(step_type=step.step_type, step_id=step.step_id)
            progress.delta.tool_call.CopyFrom(delta)
            self._log.add(step_progress=progress)
        decisions.begin_approval(self._log, step)
        await self._run_tools(step)

    async def _run_tools(self, stored: v1.Step) -> None:
        """Go on with a tool step until it is complete or waits for somebody."""
        step = v1.Step()
        step.CopyFrom(stored)
        decisions.record_decisions(self._log, step, ledger.expire(step, now()))
        if ledger.runnable(step):
            config = self._speaker.config
            parallel = config.max_parallel_tools or self._around.limits.parallel_tools
            running = ToolStep(
                self._log,
                step,
                tools=self._speaker.tools,
                toolbox=self._around.toolbox,
                ask_agent=self._agents.ask,
                limits=self._around.limits,
                parallel=parallel,
            )
            await self._log.committing(running.run())
        waiting = await self._agents.waiting(step)
        if waiting:
            self._log.put_step(step)
            self._await_input(waiting)
            return
        ledger.in_order(step)
        step.completed_at.CopyFrom(now())
        self._log.put_step(step)
        complete = v1.TurnStepComplete(step_type=step.step_type, step_id=step.step_id, step_details=step)
        self._log.add(step_complete=complete)
        heir = _heir(step, self._speaker.tools)
        if heir is not None:
            self._turn.agent_id = heir.tool.partition("/")[2]
        await self._log.commit()
        if heir is not None:
            await self._speak()

    def _await_input(self, waiting: list[v1.PendingCall]) -> None:
        """Stop until the caller brings results, or people decide."""
        turn = self._turn
        lost = any(one.kind == v1.PENDING_KIND_LOST for one in waiting)
        turn.status = v1.TURN_STATUS_NEEDS_ATTENTION if lost else v1.TURN_STATUS_AWAITING_INPUT
        turn.awaiting_since.CopyFrom(now())
        del turn.pending[:]
        turn.pending.extend(waiting)
        turn.output_message.CopyFrom(ledger.calls_message(waiting))
        self._log.add(turn_awaiting_input=v1.TurnAwaitingInput(turn=turn))


def cancel(log: TurnLog) -> None:
    """End a turn by its caller's wish; what is done so far is kept."""
    turn = log.turn
    _end(turn, v1.TURN_STATUS_CANCELLED)
    log.add(turn_cancelled=v1.TurnCancelled(turn=turn))


def fail(log: TurnLog, error: StackError) -> None:
    """End a turn with an error."""
    turn = log.turn
    turn.error.CopyFrom(to_error_message(error))
    _end(turn, v1.TURN_STATUS_FAILED)
    log.add(turn_failed=v1.TurnFailed(turn=turn))


def _end(turn: v1.Turn, status: "v1.TurnStatus.ValueType") -> None:
    decisions.resume(turn)
    turn.status = status
    turn.completed_at.CopyFrom(now())


def _heir(step: v1.Step, tools: dict[str, Offered]) -> Offered | None:
    """The agent that the dialog was handed over to; the last one where the model named several."""
    heirs = [
        tools[call.tool_name]
        for call, record in ledger.lines(step)
        if record.state == v1.TOOL_CALL_STATE_DONE
        and call.tool_name in tools
        and tools[call.tool_name].kind == "handoff"
    ]
    return heirs[-1] if heirs else None
