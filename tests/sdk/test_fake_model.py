"""Agents over a FakeModel: everything but the model is real."""

import asyncio
import dataclasses
import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stack_client import (
    Agent,
    FakeModel,
    Pending,
    Recording,
    StackClient,
    ToolGroup,
    call,
    print_events,
    tool,
)
from stack_client.content import text_of
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError, UnsupportedError
from tests.stacks import ROOT, environment

REFUND = call("refund", order_id="A17", amount=5.0)


def refund(order_id: str, amount: float) -> str:
    """Refund part of an order."""
    return f"refunded {amount} on {order_id}"


def last_result(messages: list[Any]) -> str:
    return f"The tool says: {text_of(messages[-1].tool.content)}"


def test_the_ten_lines_of_a_newcomer() -> None:
    model = FakeModel([REFUND, "Done."])
    agent = Agent(model, instructions="Help with orders.", tools=[refund])
    result = agent.run("Refund 5 euros on A17.")
    assert result.text == "Done."
    assert [one.tool_name for one in result.tool_calls] == ["refund"]
    asked = model.requests[-1].messages
    assert text_of(asked[0].system.content) == "Help with orders."
    assert text_of(asked[-1].tool.content) == "refunded 5.0 on A17"


async def test_run_works_inside_a_running_loop_and_arun_beside_it() -> None:
    agent = Agent(FakeModel(["one", "two"]))
    assert agent.run("a").text == "one"
    assert (await agent.arun("b")).text == "two"
    agent.close()
    await agent.aclose()


def test_constructing_sends_nothing() -> None:
    model = FakeModel([])
    Agent(model, tools=["builtin::nothing", refund])
    assert not model.requests


def test_a_streamed_text_is_cut_as_the_model_says() -> None:
    events = list(Agent(FakeModel(["Hello world"], split=4)).stream("hi"))
    assert "".join(event.text for event in events) == "Hello world"
    assert events[-1].result is not None


def test_a_model_without_replies_left_and_one_that_fails_say_so() -> None:
    with pytest.raises(FailedPreconditionError, match="no reply left"):
        Agent(FakeModel([])).run("hi")
    with pytest.raises(FailedPreconditionError, match="ValueError: on purpose"):
        Agent(FakeModel([ValueError("on purpose")])).run("hi")


def test_shields_are_refused_by_a_fake_model() -> None:
    with pytest.raises((UnsupportedError, UnavailableError)):
        Agent(FakeModel(["x"]), shields=["policy"]).run("hi")


def test_an_approval_waits_for_a_person_and_the_answer_goes_on() -> None:
    ran: list[str] = []

    @tool(effect="idempotent", approval="always")
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(str(amount))
        return f"paid {amount}"

    agent = Agent(FakeModel([call("pay", amount=7), last_result]), tools=[pay])
    waiting = agent.run("pay 7")
    (one,) = waiting.pending
    assert (one.kind, one.tool, dict(one.arguments), waiting.text) == ("approval", "pay", {"amount": 7}, "")
    assert not ran
    done = agent.run(waiting.approve(one.id, arguments={"amount": 3}))
    assert (done.text, ran, done.pending) == ("The tool says: paid 3", ["3"], [])


def test_a_denied_call_does_not_run() -> None:
    agent = Agent(FakeModel([REFUND, last_result]), tools=[refund], approvals="always")
    waiting = agent.run("refund")
    with pytest.raises(InvalidArgumentError, match="no call 'other' waits"):
        waiting.deny("other")
    assert "too much" in agent.run(waiting.deny(why="too much")).text


def test_a_program_decides_by_argument_and_leaves_the_rest_to_a_person() -> None:
    seen: list[Pending] = []

    def small(one: Pending) -> bool | str | None:
        seen.append(one)
        amount = one.arguments["amount"]
        return True if amount < 10 else "far too much" if amount > 100 else None

    calls = [call("refund", order_id=name, amount=amount) for name, amount in (("a", 1.0), ("b", 50.0), ("c", 500.0))]
    agent = Agent(FakeModel([calls, "Done."]), tools=[refund], approvals={"refund": small})
    waiting = agent.run("refund them")
    assert [one.arguments["order_id"] for one in waiting.pending] == ["b"]
    done = agent.run(waiting.approve())
    (step,) = [one.tool_execution for one in done.steps if one.HasField("tool_execution")]
    said = [text_of(response.content) for response in step.tool_responses]
    assert said[0] == "refunded 1.0 on a"
    assert said[1] == "refunded 50.0 on b"
    assert "far too much" in said[2]


async def test_an_asynchronous_function_may_decide() -> None:
    async def decide(one: Pending) -> bool:
        await asyncio.sleep(0)
        return True

    agent = Agent(FakeModel([REFUND, "Done."]), tools=[refund], approvals=decide)
    assert (await agent.arun("refund")).text == "Done."
    await agent.aclose()


def test_a_tool_that_takes_too_long_is_a_failed_call() -> None:
    release = threading.Event()

    @tool(effect="read", timeout=0.05)
    def wait() -> str:
        """Wait."""
        release.wait(20)
        return "late"

    result = Agent(FakeModel([call("wait"), last_result]), tools=[wait]).run("go")
    release.set()
    assert result.text == "The tool says: wait took longer than 0.05 s"


class Weather(BaseModel):
    city: str
    degrees: float


@dataclasses.dataclass
class Point:
    x: int
    y: int


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Weather, '{"city": "Oslo", "degrees": 3}', Weather(city="Oslo", degrees=3)),
        (Point, '{"x": 1, "y": 2}', Point(1, 2)),
        (list[int], "[1, 2]", [1, 2]),
    ],
)
def test_an_answer_has_the_type_that_was_asked_for(kind: Any, text: str, value: object) -> None:
    model = FakeModel([text])
    assert Agent(model, output_type=kind).run("hi").output == value
    assert model.requests[0].response_format.HasField("json_schema")


def test_a_typed_answer_comes_after_the_calls_and_in_the_last_step_at_the_latest() -> None:
    model = FakeModel([REFUND, '{"x": 1, "y": 2}'])
    agent = Agent(model, tools=[refund], output_type=Point, tool_choice="refund", max_infer_iters=2)
    assert agent.run("go").output == Point(1, 2)
    first, last = model.requests
    assert not first.HasField("response_format"), "a step that must call a tool does not answer"
    assert last.response_format.json_schema["additionalProperties"] is False
    assert last.tool_config.tool_choice == "none", "no calls that nobody would make"


def test_an_answer_of_another_type_says_so() -> None:
    result = Agent(FakeModel(["no JSON"]), output_type=Weather).run("hi")
    with pytest.raises(FailedPreconditionError, match="no Weather"):
        _ = result.output
    assert result.text == "no JSON"


def test_an_agent_is_a_tool_of_another_and_its_functions_run_here() -> None:
    inner = Agent(FakeModel([REFUND, last_result]), tools=[refund], name="cashier", description="Gives money back.")
    model = FakeModel([call("cashier", message="refund A17"), last_result])
    result = Agent(model, tools=[inner]).run("please")
    assert result.text == "The tool says: The tool says: refunded 5.0 on A17"
    assert [one.tool_name for one in model.requests[0].tools] == ["cashier"]


def test_a_dialog_is_handed_over() -> None:
    expert = Agent(FakeModel(["I am the expert.", "Still me."]), instructions="Be an expert.", name="expert")
    agent = Agent(FakeModel([call("transfer_to_expert")]), handoffs=[expert])
    assert agent.run("help").text == "I am the expert."
    assert agent.run("and now?").text == "Still me."


def test_two_agents_with_different_tools_of_one_name_are_refused() -> None:
    def other() -> None:
        """Other."""

    other.__name__ = "refund"
    inner = Agent("m", tools=[other])
    with pytest.raises(InvalidArgumentError, match="different tools called 'refund'"):
        _ = Agent("m", tools=[refund, inner]).tools


def test_what_is_no_tool_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="is no tool"):
        Agent("m", tools=[3])
    with pytest.raises(InvalidArgumentError, match="none of never, always, writes"):
        Agent("m", approvals="sometimes")
    with pytest.raises(InvalidArgumentError, match="none of read, idempotent, unsafe"):
        tool(effect="harmless")


def test_tools_of_the_stack_run_there(tmp_path: Path) -> None:
    model = FakeModel([call("wolfram_alpha", query="2/3 + 1/6"), last_result])
    result = Agent(model, tools=[ToolGroup("builtin::wolfram_alpha")]).run("compute")
    assert "5/6" in result.text


def test_a_run_is_started_left_and_finished_by_another_agent_object() -> None:
    model = FakeModel([REFUND, "Done."])
    first = Agent(model, tools=[refund])
    turn_id = first.start("refund")
    second = Agent(model, tools=[refund], session_id=first.session_id)
    assert second.resume(turn_id).text == "Done."
    assert second.resume().text == "Done.", "again, from the log"


def test_files_come_with_a_question(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("The code word is heron.")
    model = FakeModel(["ok"])
    Agent(model).run("What is it?", attachments=[note])
    assert "The code word is heron." in text_of(model.requests[0].messages[-1].user.content)
    with pytest.raises(InvalidArgumentError, match=r"missing\.txt"):
        Agent(model).run("What is it?", attachments=[tmp_path / "missing.txt"])


def test_events_are_printed_for_people() -> None:
    file = io.StringIO()
    agent = Agent(FakeModel([["Let me see. ", REFUND], "Done."]), tools=[refund])
    result = print_events(agent.stream("refund"), file=file)
    assert result is not None
    shown = file.getvalue().splitlines()
    assert shown == [
        "Let me see. ", '[call] refund({"order_id": "A17", "amount": 5.0})', "[result] refunded 5.0 on A17", "Done.",
    ]  # fmt: skip


async def test_what_was_recorded_once_is_repeated_without_the_model(client: StackClient, tmp_path: Path) -> None:
    file = tmp_path / "recorded.jsonl"
    live = Agent(Recording(file, "scripted", client=client), instructions="x")
    assert (await live.arun("say hello there")).text == "hello there"
    await live.aclose()
    replayed = Agent(Recording(file, "scripted", mode="replay"), instructions="x")
    assert (await replayed.arun("say hello there")).text == "hello there"
    with pytest.raises(FailedPreconditionError, match="no answer to 'say more'"):
        await replayed.arun("say more")
    await replayed.aclose()


def test_ten_agents_at_once() -> None:
    agents = [Agent(FakeModel([REFUND, f"Done {number}."]), tools=[refund]) for number in range(10)]
    results: dict[int, str] = {}

    def work(number: int) -> None:
        results[number] = agents[number].run("go").text

    threads = [threading.Thread(target=work, args=[number]) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {number: f"Done {number}." for number in range(10)}


def test_the_private_stack_ends_with_its_program() -> None:
    code = (
        "from stack_client import Agent, FakeModel\n"
        "from stack_client.private_stack import private_stack\n"
        "print(Agent(FakeModel(['hi'])).run('x').text, private_stack()._process.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    text, pid = done.stdout.split()
    assert text == "hi"
    assert not Path(f"/proc/{pid}").exists()
