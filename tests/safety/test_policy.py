"""Policies: what a file says holds, a change takes effect without a restart, and a broken one changes nothing."""

import asyncio
from pathlib import Path

import pytest
from google.protobuf import json_format

from llamastack import v1
from services.runtime.config import ConfigError
from services.safety.policy import read_policy
from stack_client.errors import FailedPreconditionError, NotFoundError
from tests.safety.mesh import SafetyMesh, safety_mesh

STRICT = """
policy: mine
surfaces:
  user:
    shields: [{shield: words, threshold: 0.5}]
"""


async def action(mesh: SafetyMesh, text: str = "forbidden", shield: str = "words", surface: str = "") -> int:
    return (await mesh.client.safety.run_shield(shield, text, surface=surface)).verdict.action


async def changed(mesh: SafetyMesh, file: Path, text: str) -> str:
    """Write a policy and wait until it is in force."""
    before = (await mesh.client.safety.policy()).version
    file.write_text(text)
    async with asyncio.timeout(20):
        while (version := (await mesh.client.safety.policy()).version) == before:
            await asyncio.sleep(0.02)
    return version


async def test_a_changed_file_takes_effect_without_a_restart_and_verdicts_name_its_version(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("policy: mine\n")
    async with safety_mesh(tmp_path, policy=str(file)) as mesh:
        await mesh.shield("words", score=0.7)
        first = await changed(mesh, file, STRICT)
        assert await action(mesh) == v1.SAFETY_ACTION_BLOCK
        second = await changed(mesh, file, STRICT.replace("0.5", "0.8, warn: 0.6"))
        assert second != first
        response = await mesh.client.safety.run_shield("words", "forbidden")
        assert (response.verdict.action, response.verdict.policy_version) == (v1.SAFETY_ACTION_WARN, second)
        old = await mesh.client.safety.policy(first)
        document = json_format.MessageToDict(old.document)
        assert document["surfaces"]["user"]["shields"][0]["threshold"] == 0.5
        back = await changed(mesh, file, STRICT)
        assert back == first


async def test_a_broken_file_changes_nothing_and_is_told(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("policy: mine\n")
    async with safety_mesh(tmp_path, policy=str(file)) as mesh:
        await mesh.shield("words")
        version = await changed(mesh, file, STRICT)
        file.write_text("surfaces: {user: {shields: [nobody]}}")
        async with asyncio.timeout(20):
            while "policy" not in mesh.node.readiness.details:
                await asyncio.sleep(0.02)
        assert "no shield 'nobody'" in mesh.node.readiness.details["policy"]
        assert (await mesh.client.safety.policy()).version == version
        with pytest.raises(FailedPreconditionError, match="the policy in force names shield 'words'"):
            await mesh.client.shields.unregister("words")


async def test_what_cannot_be_judged_passes_only_where_the_policy_says_so(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("surfaces: {tool_result: {on_error: open}}")
    async with safety_mesh(tmp_path, policy=str(file)) as mesh:
        name = await mesh.shield("words", mode="dead")
        assert await action(mesh, "hello", name) == v1.SAFETY_ACTION_BLOCK
        passed = await mesh.client.safety.run_shield(name, [{"role": "tool", "content": "hello"}])
        assert passed.verdict.action == v1.SAFETY_ACTION_WARN
        assert passed.verdict.error.message


async def test_categories_have_actions_and_thresholds_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("policy: mine\n")
    async with safety_mesh(tmp_path, policy=str(file)) as mesh:
        await mesh.shield("words", score=0.7)
        rule = "surfaces: {user: {shields: [{shield: words, categories: {S1: %s}}]}}"
        await changed(mesh, file, rule % "{action: warn}")
        assert await action(mesh) == v1.SAFETY_ACTION_WARN
        await changed(mesh, file, rule % "{threshold: 0.9}")
        assert await action(mesh) == v1.SAFETY_ACTION_ALLOW
        await changed(mesh, file, rule % "{action: log}")
        response = await mesh.client.safety.run_shield("words", "forbidden")
        assert response.violation.violation_level == v1.VIOLATION_LEVEL_INFO


async def test_an_allowed_text_passes_whatever_shields_say(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    rule = 'allow: [{surface: user, exact: "kill -9 forbidden", until: %s, owner: sre}]'
    file.write_text(rule % "2099-01-01")
    async with safety_mesh(tmp_path, policy=str(file)) as mesh:
        await mesh.shield("words")
        assert await action(mesh, "kill -9 forbidden") == v1.SAFETY_ACTION_ALLOW
        assert await action(mesh, "kill -9 forbidden now") == v1.SAFETY_ACTION_BLOCK
        await changed(mesh, file, rule % "2001-01-01")
        assert await action(mesh, "kill -9 forbidden") == v1.SAFETY_ACTION_BLOCK


async def test_without_a_file_shields_judge_the_surfaces_of_their_own(mesh: SafetyMesh) -> None:
    before = (await mesh.client.safety.policy()).version
    name = await mesh.shield(surfaces=["file"])
    assert (await mesh.client.safety.policy()).version != before
    assert await action(mesh, shield="policy", surface="file") == v1.SAFETY_ACTION_BLOCK
    await mesh.client.shields.unregister(name)
    with pytest.raises(NotFoundError):
        await mesh.client.safety.policy("0" * 64)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("surfaces: {nowhere: {}}", "no surface 'nowhere'"),
        ("surfaces: {user: {shields: [a, a]}}", "'a' is there twice"),
        ("surfaces: {user: {shields: [{shield: a, threshold: 2}]}}", "is no score"),
        ("surfaces: {user: {shields: [{shield: a, threshhold: 0.5}]}}", 'did you mean "threshold"'),
        ("on_error: sometimes", "closed, open"),
        ("allow: [{surface: user, exact: x, owner: me}]", "until: missing"),
        ("[", "not valid YAML"),
    ],
)
def test_a_wrong_file_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_policy(file)
    assert str(file) in str(caught.value)


def test_two_ways_to_write_one_policy_have_one_version(tmp_path: Path) -> None:
    short, long = tmp_path / "short.yaml", tmp_path / "long.yaml"
    short.write_text("surfaces: {user: {shields: [a]}}")
    long.write_text(
        "policy: default\non_error: closed\nsurfaces:\n  user:\n    shields:\n    - shield: a\n    stream: hold\n"
    )
    assert read_policy(short).version == read_policy(long).version
