"""Chats with shields: the dialog is judged beside the generation, the answer before it is sent."""

import asyncio
from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import messages, text_of
from stack_client.errors import NotFoundError, UnsupportedError
from tests.safety.mesh import SafetyMesh

LONG = " ".join(f"word{n}{'.' if n % 9 == 8 else ''}" for n in range(300))


def chat(text: str, **settings: Any) -> v1.ChatCompletionRequest:
    return v1.ChatCompletionRequest(model_id="scripted", messages=messages(text), **settings)


async def stream(mesh: SafetyMesh, request: v1.ChatCompletionRequest) -> list[v1.StreamChatCompletionResponse]:
    wrapped = v1.StreamChatCompletionRequest(request=request)
    return [event async for event in mesh.client.inference.stream(wrapped)]


def kinds(events: list[v1.StreamChatCompletionResponse]) -> list[str]:
    """Kinds of events, pieces of text counted as one."""
    found: list[str] = []
    for event in events:
        kind = str(event.WhichOneof("event"))
        if not (found and found[-1] == kind == "progress"):
            found.append(kind)
    return found


def text(events: list[v1.StreamChatCompletionResponse]) -> str:
    return "".join(event.progress.delta.text for event in events)


async def unary_chat(mesh: SafetyMesh, request: v1.ChatCompletionRequest) -> v1.ChatCompletionResponse:
    stub: Any = v1.InferenceServiceStub(mesh.client.channel("inference"))
    response: v1.ChatCompletionResponse = await unary(stub.ChatCompletion(request))
    return response


async def test_a_safe_chat_is_the_same_with_shields(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    events = await stream(mesh, chat(f"say {LONG}", input_shields=[name], output_shields=[name]))
    assert kinds(events) == ["start", "judged", "progress", "judged", "complete"]
    assert text(events) == LONG == text_of(events[-1].complete.completion_message.content)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_a_blocked_dialog_shows_nothing_and_ends_the_generation(mesh: SafetyMesh) -> None:
    events = await stream(mesh, chat("hang forbidden", input_shields=[await mesh.shield()]))
    assert kinds(events) == ["start", "blocked"]
    blocked = events[-1].blocked
    assert (blocked.violation_type, blocked.surface) == ("S1", v1.SAFETY_SURFACE_USER)
    assert blocked.user_message
    assert blocked.verdicts[0].codes == ["S1"]


async def test_the_first_piece_waits_for_the_verdict_while_the_model_decodes_on(mesh: SafetyMesh) -> None:
    name = await mesh.shield(mode="gate")
    request = v1.StreamChatCompletionRequest(request=chat("say hello there", input_shields=[name]))
    async with mesh.client.inference.stream(request) as events:
        assert (await anext(events)).WhichOneof("event") == "start"
        following = asyncio.ensure_future(anext(events))
        while not mesh.seen.subjects:
            await asyncio.sleep(0.01)
        assert not following.done()
        mesh.open.set()
        assert (await following).WhichOneof("event") == "judged"
        rest = [event async for event in events]
    assert text(rest) == "hello there"


async def test_a_blocked_answer_shows_only_what_was_judged(mesh: SafetyMesh) -> None:
    events = await stream(mesh, chat(f"say {LONG} forbidden. {LONG}", output_shields=[await mesh.shield()]))
    assert kinds(events) == ["start", "progress", "blocked"]
    shown = text(events)
    assert shown
    assert LONG.startswith(shown)
    assert text_of(events[-1].blocked.completion_message.content) == shown
    assert events[-1].blocked.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", ["dead", "crash", "nonsense", "half", "silent"])
async def test_a_guard_that_cannot_judge_blocks_dialog_and_answer(mesh: SafetyMesh, mode: str) -> None:
    name = await mesh.shield(mode=mode)
    for request in (chat("say hello", input_shields=[name]), chat("say hello", output_shields=[name])):
        events = await stream(mesh, request)
        assert kinds(events) == ["start", "blocked"]
        assert events[-1].blocked.violation_type == "guard_unavailable"
        response = await unary_chat(mesh, request)
        assert response.finish_reason == v1.FINISH_REASON_CONTENT_FILTER
        assert response.blocked.violation_type == "guard_unavailable"
        assert not response.completion_message.content.items


async def test_unary_chats_are_judged_too(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    safe = await unary_chat(mesh, chat("say hello", input_shields=[name], output_shields=[name]))
    assert text_of(safe.completion_message.content) == "hello"
    assert not safe.HasField("blocked")
    asked = await unary_chat(mesh, chat("say forbidden", input_shields=[name]))
    assert asked.blocked.surface == v1.SAFETY_SURFACE_USER
    several = await unary_chat(mesh, chat("say a forbidden thing", output_shields=[name], n=2))
    assert several.blocked.surface == v1.SAFETY_SURFACE_ASSISTANT
    assert "forbidden" not in str(several.completion_message)
    assert not several.choices


async def test_warnings_are_told_and_do_not_block(mesh: SafetyMesh) -> None:
    name = await mesh.shield(action="warn")
    events = await stream(mesh, chat("say forbidden fruit", input_shields=[name], output_shields=[name]))
    assert kinds(events) == ["start", "judged", "progress", "judged", "complete"]
    assert text(events) == "forbidden fruit"
    assert [event.judged.verdicts[0].codes for event in events if event.HasField("judged")] == [["S1"], ["S1"]]
    assert [verdict.level for verdict in events[-1].complete.verdicts] == [v1.VIOLATION_LEVEL_WARN] * 2


async def test_what_is_redacted_reaches_neither_model_nor_reader(mesh: SafetyMesh) -> None:
    name = await mesh.shield(action="redact")
    for request in (
        chat("say the forbidden3 word", input_shields=[name]),
        chat("say the forbidden3 word", output_shields=[name]),
    ):
        events = await stream(mesh, request)
        assert text(events) == "the [S1] word"
        response = await unary_chat(mesh, request)
        assert text_of(response.completion_message.content) == "the [S1] word"


async def test_arguments_of_tool_calls_are_judged_before_they_are_shown(mesh: SafetyMesh) -> None:
    tools = [
        v1.ToolDefinition(tool_name="get_weather", parameters={"city": v1.ToolParamDefinition(param_type="string")})
    ]
    name = await mesh.shield()
    events = await stream(mesh, chat("weather", tools=tools, output_shields=[name]))
    assert events[-1].complete.finish_reason == v1.FINISH_REASON_TOOL_CALLS
    events = await stream(mesh, chat("evil", tools=tools, output_shields=[name]))
    assert kinds(events) == ["start", "blocked"]
    assert "forbidden" not in str([event for event in events if event.HasField("progress")])


async def test_results_of_tools_are_judged_as_such(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    request = chat("weather", input_shields=[name])
    request.messages.extend(messages([{"role": "tool", "content": "forbidden", "call_id": "1"}]))
    events = await stream(mesh, request)
    assert events[-1].blocked.surface == v1.SAFETY_SURFACE_TOOL_RESULT


async def test_unknown_shields_and_log_probabilities_are_refused(mesh: SafetyMesh) -> None:
    with pytest.raises(NotFoundError, match="no shield 'nobody'"):
        await stream(mesh, chat("say hello", input_shields=["nobody"]))
    with pytest.raises(NotFoundError, match="no shield 'nobody'"):
        await unary_chat(mesh, chat("say hello", output_shields=["nobody"]))
    with pytest.raises(UnsupportedError, match="output_shields may withhold"):
        await stream(mesh, chat("say hello", output_shields=["x"], logprobs=v1.LogProbConfig()))


async def test_ten_chats_at_once_keep_their_own_verdicts(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    asked = [f"say {LONG} {'forbidden' if n % 2 else 'allowed'} {n}. {LONG}" for n in range(10)]
    ends = await asyncio.gather(*(stream(mesh, chat(one, output_shields=[name])) for one in asked))
    assert [kinds(events)[-1] for events in ends] == ["complete", "blocked"] * 5


async def test_an_answer_that_fails_in_the_middle_fails_with_shields_too(mesh: SafetyMesh) -> None:
    with pytest.raises(Exception, match="the script breaks here"):
        await stream(mesh, chat("break", input_shields=[await mesh.shield()], output_shields=[await mesh.shield()]))


async def test_a_tool_call_leaves_after_the_text_before_it_was_judged(mesh: SafetyMesh) -> None:
    tools = [v1.ToolDefinition(tool_name="get_weather")]
    name = await mesh.shield()
    events = await stream(mesh, chat("look first", tools=tools, output_shields=[name]))
    assert kinds(events) == ["start", "progress", "judged", "complete"]
    pieces = [event.progress.delta.WhichOneof("delta") for event in events if event.HasField("progress")]
    assert pieces == ["text", "text", "tool_call"]
    events = await stream(mesh, chat("look badly", tools=tools, output_shields=[name]))
    assert kinds(events) == ["start", "blocked"]


async def test_arguments_that_would_be_redacted_are_withheld(mesh: SafetyMesh) -> None:
    tools = [v1.ToolDefinition(tool_name="get_weather")]
    name = await mesh.shield(action="redact")
    request = chat("evil", tools=tools, output_shields=[name])
    assert kinds(await stream(mesh, request)) == ["start", "blocked"]
    assert (await unary_chat(mesh, request)).blocked.surface == v1.SAFETY_SURFACE_TOOL_ARGUMENTS


async def test_all_results_of_parallel_calls_are_judged(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    for results in (["forbidden", "fine"], ["fine", "forbidden"]):
        request = chat("weather", input_shields=[name])
        request.messages.append(v1.Message(assistant=v1.CompletionMessage(tool_calls=[v1.ToolCall(tool_name="x")])))
        request.messages.extend(messages([{"role": "tool", "content": one, "call_id": one} for one in results]))
        assert kinds(await stream(mesh, request)) == ["start", "blocked"]


async def test_what_is_redacted_in_context_and_in_older_new_messages_never_reaches_the_model(mesh: SafetyMesh) -> None:
    request = chat("say the forbidden1 word", input_shields=[await mesh.shield(action="redact")])
    request.messages.extend(messages("say a forbidden2 thing"))
    request.messages[1].user.context.CopyFrom(messages("secret forbidden3")[0].user.content)
    events = await stream(mesh, request)
    assert text(events) == "a [S1] thing"
    [judged] = [event.judged for event in events if event.HasField("judged")]
    assert [one.message_index for one in judged.redacted] == [0, 1]
    assert text_of(judged.redacted[0].message.user.content) == "say the [S1] word"
    assert text_of(judged.redacted[1].message.user.context) == "secret [S1]"


async def test_a_policy_that_binds_nothing_to_tool_arguments_lets_calls_pass(mesh: SafetyMesh) -> None:
    tools = [v1.ToolDefinition(tool_name="get_weather")]
    name = await mesh.shield(surfaces=["assistant", "user"])
    events = await stream(mesh, chat("evil", tools=tools, input_shields=["policy"], output_shields=["policy"]))
    assert events[-1].complete.finish_reason == v1.FINISH_REASON_TOOL_CALLS
    await mesh.client.shields.unregister(name)
