"""Shields and what runs them: registration, one and several shields, moderation, errors."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import messages
from stack_client.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from tests.safety.mesh import SafetyMesh, safety_mesh


async def test_a_safe_text_has_no_violation_and_an_unsafe_one_has(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    safe = await mesh.client.safety.run_shield(name, "hello")
    assert not safe.HasField("violation")
    assert (safe.verdict.action, safe.verdict.coverage) == (v1.SAFETY_ACTION_ALLOW, 1.0)
    unsafe = await mesh.client.safety.run_shield(name, "a forbidden thing")
    assert unsafe.violation.violation_level == v1.VIOLATION_LEVEL_ERROR
    assert unsafe.violation.user_message
    assert unsafe.violation.metadata["violation_type"] == "S1"
    assert unsafe.verdict.policy_version == unsafe.violation.metadata["policy_version"] != ""
    [span] = unsafe.verdict.spans
    assert (span.start, span.end, span.code, span.message_index) == (2, 11, "S1", 0)


@pytest.mark.parametrize("mode", ["dead", "crash", "nonsense", "half", "silent"])
async def test_a_guard_that_cannot_judge_is_a_violation(mesh: SafetyMesh, mode: str) -> None:
    response = await mesh.client.safety.run_shield(await mesh.shield(mode=mode), "hello")
    assert response.violation.violation_level == v1.VIOLATION_LEVEL_ERROR
    assert response.violation.metadata["violation_type"] == "guard_unavailable"
    assert response.verdict.error.message
    moderated = await mesh.client.safety.moderate(["hello", "you"], model=await mesh.shield(mode=mode))
    assert [result.flagged for result in moderated.results] == [True, True]


async def test_a_guard_that_hangs_is_a_violation_after_its_time(tmp_path: Path) -> None:
    async with safety_mesh(tmp_path, judge_seconds=0.05) as mesh:
        response = await mesh.client.safety.run_shield(await mesh.shield(mode="hang"), "hello")
        assert response.violation.metadata["violation_type"] == "guard_unavailable"
        assert "0.05 s" in response.verdict.error.message


async def test_what_came_since_the_last_answer_is_judged_unless_all_is_asked_for(mesh: SafetyMesh) -> None:
    dialog = [
        {"role": "user", "content": "forbidden"},
        {"role": "assistant", "content": "forbidden2"},
        {"role": "tool", "content": "fine"},
        {"role": "user", "content": "hello"},
    ]
    last = await mesh.client.safety.run_shield(await mesh.shield(), dialog)
    assert not last.HasField("violation")
    assert sorted(len(subject.dialog) for subject in mesh.seen.subjects) == [2, 3]
    every = await mesh.client.safety.run_shield(await mesh.shield(messages="all"), dialog)
    assert every.verdict.spans[0].message_index == 0
    assert mesh.seen.texts[2:] == ["forbidden", "fine", "hello"]
    tools = [
        {"role": "assistant", "content": "x"},
        {"role": "tool", "content": "forbidden"},
        {"role": "tool", "content": "fine"},
    ]
    parallel = await mesh.client.safety.run_shield(await mesh.shield(), tools)
    assert parallel.verdict.spans[0].message_index == 1


async def test_each_message_is_judged_as_what_it_is(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    call = v1.ToolCall(tool_name="shell", arguments_json='{"cmd": "ls"}')
    cases: list[tuple[Any, int]] = [
        (messages("x1"), v1.SAFETY_SURFACE_USER),
        (messages([{"role": "tool", "content": "x2"}]), v1.SAFETY_SURFACE_TOOL_RESULT),
        (messages([{"role": "assistant", "content": "x3"}]), v1.SAFETY_SURFACE_ASSISTANT),
        ([v1.Message(assistant=v1.CompletionMessage(tool_calls=[call]))], v1.SAFETY_SURFACE_TOOL_ARGUMENTS),
    ]
    for dialog, surface in cases:
        response = await mesh.client.safety.run_shield(name, dialog)
        assert response.verdict.surface == surface
    assert mesh.seen.texts[-1] == 'shell({"cmd": "ls"})'
    named = await mesh.client.safety.run_shield(name, "x5", surface="retrieved")
    assert named.verdict.surface == v1.SAFETY_SURFACE_RETRIEVED


async def test_context_sent_with_a_question_is_judged_as_retrieved(mesh: SafetyMesh) -> None:
    [asked] = messages("hello")
    asked.user.context.CopyFrom(messages("forbidden")[0].user.content)
    response = await mesh.client.safety.run_shield(await mesh.shield(), [asked])
    assert response.verdict.surface == v1.SAFETY_SURFACE_RETRIEVED


async def test_several_shields_answer_in_their_order(mesh: SafetyMesh) -> None:
    names = [await mesh.shield(), await mesh.shield(action="warn"), await mesh.shield(threshold=0.95)]
    response = await mesh.client.safety.run_shields(names, "forbidden")
    assert [answer.shield_id for answer in response.responses] == names
    assert [answer.is_violation for answer in response.responses] == [True, True, False]
    assert response.action == v1.SAFETY_ACTION_BLOCK
    assert response.responses[0].violation_type == "S1"
    asked = [
        v1.ShieldInvocation(shield_id=names[0], on_violation_action=v1.ON_VIOLATION_ACTION_IGNORE),
        v1.ShieldInvocation(shield_id=names[1], on_violation_action=v1.ON_VIOLATION_ACTION_RAISE),
    ]
    response = await mesh.client.safety.run_shields(asked, "forbidden")
    assert [answer.is_violation for answer in response.responses] == [False, True]
    assert response.responses[1].violation.violation_level == v1.VIOLATION_LEVEL_ERROR


async def test_moderation_answers_each_input_with_scores(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    response = await mesh.client.safety.moderate(["hello", "forbidden", ""], model=name)
    assert response.id.startswith("modr-")
    assert [result.flagged for result in response.results] == [False, True, False]
    unsafe = response.results[1]
    assert unsafe.categories["Violent Crimes"] is True
    assert unsafe.categories["Hate"] is False
    assert dict(unsafe.category_scores) == {"Violent Crimes": 0.9}
    assert unsafe.metadata["violation_type"] == "S1"
    assert response.results[0].category_scores["Violent Crimes"] == pytest.approx(0.1)


async def test_a_repeated_text_is_judged_once_and_another_threshold_needs_no_new_look(mesh: SafetyMesh) -> None:
    name = await mesh.shield(score=0.7)
    for _ in range(2):
        response = await mesh.client.safety.run_shield(name, "forbidden again")
        assert response.HasField("violation")
    assert response.verdict.cached
    assert len(mesh.seen.subjects) == 1
    await mesh.client.safety.run_shield(
        name, [{"role": "assistant", "content": "before"}, {"role": "user", "content": "forbidden again"}]
    )
    assert len(mesh.seen.subjects) == 2


async def test_parameters_of_a_call_are_laid_over_the_shields_own(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    assert (await mesh.client.safety.run_shield(name, "forbidden")).HasField("violation")
    spared = await mesh.client.safety.run_shield(name, "forbidden", params={"threshold": 0.95})
    assert not spared.HasField("violation")


async def test_redacting_names_the_text_that_may_pass(mesh: SafetyMesh) -> None:
    response = await mesh.client.safety.run_shield(await mesh.shield(action="redact"), "a forbidden2 thing")
    assert response.verdict.action == v1.SAFETY_ACTION_REDACT
    assert response.violation.violation_level == v1.VIOLATION_LEVEL_WARN
    assert response.violation.metadata["redacted_text"] == "a [S1] thing"


async def test_shields_are_registered_once_listed_and_removed(mesh: SafetyMesh) -> None:
    shields = mesh.client.shields
    first = await shields.register("guard/one:1", provider_id="inline::words", params={"score": 0.8})
    assert (first.provider_id, first.provider_resource_id) == ("words", "guard/one:1")
    assert await shields.register("guard/one:1", provider_id="words", params={"score": 0.8}) == first
    with pytest.raises(AlreadyExistsError, match="exists with other content"):
        await shields.register("guard/one:1", provider_id="words")
    assert first in await shields.list()
    assert await shields.get("guard/one:1") == first
    await shields.unregister("guard/one:1")
    with pytest.raises(NotFoundError, match="no shield 'guard/one:1'"):
        await shields.unregister("guard/one:1")


@pytest.mark.parametrize(
    ("settings_", "field"),
    [
        ({"provider_id": "nobody"}, "provider_id"),
        ({"provider_id": ""}, "provider_id"),
        ({"provider_id": "words", "params": {"threshold": 2}}, "params.threshold"),
        ({"provider_id": "words", "params": {"thresholds": {"nowhere": 0.5}}}, "params.thresholds"),
        ({"provider_id": "words", "params": {"action": "explode"}}, "params.action"),
        ({"provider_id": "words", "params": {"messages": "some"}}, "params.messages"),
        ({"provider_id": "words", "params": {"surfaces": ["nowhere"]}}, "params.surfaces"),
    ],
)
async def test_wrong_registrations_name_the_field(mesh: SafetyMesh, settings_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await mesh.client.shields.register("wrong", **settings_)
    assert caught.value.field == field


async def test_images_and_empty_calls_are_refused(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    image = v1.InterleavedContent(items=[v1.ContentItem(image=v1.ImageContent(data=b"x"))])
    with pytest.raises(UnsupportedError, match="judge text only"):
        await mesh.client.safety.run_shield(name, [v1.Message(user=v1.UserMessage(content=image))])
    with pytest.raises(InvalidArgumentError, match="messages is empty"):
        await mesh.client.safety.run_shield(name, [])
    with pytest.raises(InvalidArgumentError, match="shields is empty"):
        await mesh.client.safety.run_shields([], "x")
    with pytest.raises(NotFoundError, match="no shield uses the guard model"):
        await mesh.client.safety.moderate("x", model="nobody")


async def test_registered_shields_survive_a_restart(tmp_path: Path) -> None:
    async with safety_mesh(tmp_path) as mesh:
        await mesh.shield("kept", score=0.75)
    async with safety_mesh(tmp_path) as mesh:
        response = await mesh.client.safety.run_shield("kept", "forbidden")
        assert response.verdict.score == pytest.approx(0.75)
    assert json.loads((tmp_path / "data/safety/shields.json").read_text())[0]["shield"]["identifier"] == "kept"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200), where=st.integers(0, 200))
async def test_no_text_hides_a_word_or_crashes_the_service(mesh: SafetyMesh, text: str, where: int) -> None:
    name = "property"
    await mesh.client.shields.register(name, provider_id="words")
    planted = f"{text[:where]} forbidden {text[where:]}"
    assert (await mesh.client.safety.run_shield(name, planted)).HasField("violation")
    response = await mesh.client.safety.run_shield(name, text)
    judged = any(subject.text == text for subject in mesh.seen.subjects)
    assert response.HasField("violation") or judged or response.verdict.cached or not text.strip("\0 \t\r\n")


async def test_numbers_that_are_none_and_names_that_are_taken_are_refused(mesh: SafetyMesh) -> None:
    with pytest.raises(InvalidArgumentError, match="stands for all shields of the policy"):
        await mesh.shield("policy")
    stub: Any = v1.SafetyServiceStub(mesh.client.channel("safety"))
    request = v1.RunShieldRequest(shield_id=await mesh.shield(), messages=messages("x"), surface=77)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="surface is 77"):
        await unary(stub.RunShield(request))
    broken = await mesh.client.safety.run_shield(await mesh.shield(score="nan"), "forbidden")
    assert broken.violation.metadata["violation_type"] == "guard_unavailable"


async def test_a_caller_cannot_forgive_a_guard_that_could_not_judge(mesh: SafetyMesh) -> None:
    name = await mesh.shield(mode="dead")
    asked = v1.ShieldInvocation(shield_id=name, on_violation_action=v1.ON_VIOLATION_ACTION_IGNORE)
    response = await mesh.client.safety.run_shields([asked], "hello")
    assert response.responses[0].is_violation
    assert response.action == v1.SAFETY_ACTION_BLOCK


async def test_256_inputs_are_moderated_by_several_shields(tmp_path: Path) -> None:
    async with safety_mesh(tmp_path) as mesh:
        for _ in range(2):
            await mesh.shield(surfaces=["user"])
        response = await mesh.client.safety.moderate([f"text {n}" for n in range(255)] + ["forbidden"])
    assert [result.flagged for result in response.results] == [False] * 255 + [True]


async def test_two_registrations_of_one_name_at_once_cannot_both_win(mesh: SafetyMesh) -> None:
    registering = (mesh.shield("contested", score=n / 10) for n in range(1, 6))
    outcomes = await asyncio.gather(*registering, return_exceptions=True)
    assert sum(isinstance(outcome, AlreadyExistsError) for outcome in outcomes) == 4


async def test_the_policys_shields_are_everybodys(tmp_path: Path) -> None:
    async with safety_mesh(tmp_path) as mesh:
        await mesh.shield("corp", surfaces=["user"])
        service = mesh.node._registry
        shield = v1.RegisterShieldRequest(shield_id="corp2", provider_id="words")
        shield.params.update({"score": 0.1})
        await service.register(shield, tenant="t1")
        await mesh.shield("corp2", surfaces=["user"])
        stub: Any = v1.SafetyServiceStub(mesh.client.channel("safety"))
        request = v1.RunShieldRequest(shield_id="policy", messages=messages("forbidden"))
        for tenant in ("", "t1"):
            answer = await unary(stub.RunShield(request, metadata=[("x-tenant", tenant)] if tenant else None))
            assert answer.verdict.action == v1.SAFETY_ACTION_BLOCK


async def test_other_weights_under_a_guards_name_are_asked_anew(tmp_path: Path) -> None:
    def guard(reply: str) -> dict[str, Any]:
        return {"script": [{"reply": reply}]}

    async with safety_mesh(tmp_path, providers=True) as mesh:
        models = mesh.client.models
        await models.register("guard", provider_id="scripted", metadata=guard("safe"))
        await models.wait_ready("guard")
        await mesh.client.shields.register("lg", provider_id="llama-guard", provider_shield_id="guard")
        for _ in range(2):
            assert not (await mesh.client.safety.run_shield("lg", "hello")).HasField("violation")
        await models.unregister("guard")
        await models.register("guard", provider_id="scripted", metadata=guard("unsafe\nS1"))
        await models.wait_ready("guard")
        async with asyncio.timeout(20):
            while not (await mesh.client.safety.run_shield("lg", "hello")).HasField("violation"):
                await asyncio.sleep(0.05)


async def test_a_kept_shield_waits_for_its_guard_model_and_blocks_until_then(tmp_path: Path) -> None:
    script = {"script": [{"reply": "safe"}]}
    guard = {"model_id": "guard", "provider_id": "scripted", "metadata": script}
    async with safety_mesh(tmp_path, providers=True, models=[guard]) as mesh:
        await mesh.client.shields.register(
            "lg", provider_id="llama-guard", provider_shield_id="guard", params={"surfaces": ["user"]}
        )
    async with safety_mesh(tmp_path, providers=True) as mesh:
        assert [shield.identifier for shield in await mesh.client.shields.list()] == ["lg"]
        with pytest.raises(UnavailableError, match="'lg' cannot judge yet"):
            await mesh.client.safety.run_shield("lg", "hello")
        await mesh.shield("another")
        await mesh.client.models.register("guard", provider_id="scripted", metadata=script)
        async with asyncio.timeout(20):
            while "waits" in mesh.node.readiness.details["shields"]:
                await asyncio.sleep(0.05)
        assert not (await mesh.client.safety.run_shield("policy", "hello")).HasField("violation")


async def test_two_lines_of_configuration_add_a_guard(tmp_path: Path) -> None:
    guard = {"model_id": "lg-model", "provider_id": "scripted", "metadata": {"script": [{"reply": "unsafe\nS2"}]}}
    async with safety_mesh(tmp_path, providers=True, models=[guard], shields={"llama-guard-3": "lg-model"}) as mesh:
        response = await mesh.client.safety.run_shield("policy", [{"role": "assistant", "content": "x"}])
        assert response.violation.metadata["violation_type"] == "S2"
