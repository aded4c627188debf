"""Agents look into memory before they answer."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from llamastack import v1
from services.agents.node import build as build_agents
from services.inference.node import build as build_inference
from services.memory.node import build as build_memory
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import Build, drain, hosting
from stack_client import Agent, Memory, StackClient
from stack_client.content import struct, text_of
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnsupportedError
from tests.memory.mesh import EMBEDDING

NAMES = ("inference", "memory", "agents")
# The scripted model answers with what it is shown as the last message: question and context.
SCRIPT = [{"match": "(?s)(.*)", "reply": "{1}"}]
MODELS = [
    {"model_id": EMBEDDING, "provider_id": "scripted", "model_type": "embedding"},
    {"model_id": "echo", "provider_id": "scripted", "metadata": {"script": SCRIPT}},
]


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[StackClient]:
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        home = Path(folder)
        config = StackConfig(
            file="test",
            addresses={name: f"unix:{home}/run/{name}.sock" for name in NAMES},
            runtime=RuntimeConfig(
                tcp=False, socket_dir=home / "run", drain_grace_seconds=0.3, drain_notice_seconds=0, log_level="WARNING"
            ),
            sections={"inference": {"models": MODELS}, "agents": {"inference_retry_seconds": 0.01}},
        )
        builds: dict[str, Build] = {"inference": build_inference, "memory": build_memory, "agents": build_agents}
        async with AsyncExitStack() as stack:
            hosted = await stack.enter_async_context(hosting(builds, config=config, home=home))
            running = await stack.enter_async_context(StackClient(config.addresses))
            stack.push_async_callback(drain, hosted)
            await running.models.wait_ready(EMBEDDING, timeout=30)
            yield running


async def test_what_memory_knows_is_shown_beside_the_question_and_not_as_instructions(client: StackClient) -> None:
    await client.memory.create("facts")
    await client.memory.insert("facts", {"id": "engine", "text": "The engine is cooled by glycol."})
    agent = Agent("echo", memory=["facts"], instructions="Be brief.", client=client)
    result = await agent.arun("How is the engine cooled?")
    step = next(step for step in result.turn.steps if step.WhichOneof("details") == "memory_retrieval")
    assert step.memory_retrieval.vector_db_ids == "facts"
    context = text_of(step.memory_retrieval.inserted_context)
    assert "cooled by glycol" in context
    assert "not trusted" in context
    assert "cooled by glycol" in result.text  # the model saw it in the user's message
    assert "Be brief" not in result.text
    assert result.turn.steps[0].step_id == step.step_id


async def test_retrieved_text_belongs_to_its_own_turn_only(client: StackClient) -> None:
    await client.memory.create("once")
    await client.memory.insert("once", {"id": "zebra", "text": "Zebras have stripes."})
    agent = Agent("echo", memory=["once"], client=client)
    await agent.arun("zebras stripes")
    await client.memory.delete_documents("once", "zebra")
    second = await agent.arun("and what else?")
    assert "Zebras" not in second.text


async def test_files_are_loaded_before_the_first_run_and_only_what_changed_later(
    client: StackClient, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("# Pump\n\nThe pump moves forty litres.")
    (tmp_path / "b.txt").write_text("Valves are made of brass.")
    (tmp_path / ".hidden.txt").write_text("secret")
    pattern = str(tmp_path / "*")
    agent = Agent("echo", memory=[pattern], client=client)
    assert "forty litres" in (await agent.arun("pump litres")).text
    memory = Memory(pattern)
    assert (await memory.async_sync(client)).unchanged == 2
    (tmp_path / "a.md").write_text("# Pump\n\nThe pump moves fifty litres.")
    (tmp_path / "b.txt").unlink()
    synced = await memory.async_sync(client)
    assert (synced.ingested, synced.unchanged, synced.deleted) == (["a.md"], 0, ["b.txt"])
    hits = await memory.aquery("pump litres", client=client)
    assert ["fifty" in hit.text for hit in hits] == [True]
    assert len(await client.files.list()) == 1


async def test_an_unreadable_file_is_named_and_the_others_are_loaded(client: StackClient, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("All is well.")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 broken")
    synced = await Memory(tmp_path).async_sync(client)
    assert synced.ingested == ["good.txt"]
    assert set(synced.failures) == {"bad.pdf"}


async def test_memory_that_is_not_there_is_named(client: StackClient, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        await Agent("echo", memory=["nowhere"], client=client).arun("x")
    with pytest.raises(FailedPreconditionError, match="no file matches"):
        await Agent("echo", memory=[str(tmp_path / "*.pdf")], client=client).arun("x")


async def test_a_bank_that_was_deleted_fails_the_turn_with_its_name(client: StackClient) -> None:
    await client.memory.create("gone")
    agent = Agent("echo", memory=["gone"], client=client)
    await agent.arun("hello")
    await client.memory.delete("gone")
    with pytest.raises(NotFoundError, match="gone"):
        await agent.arun("hello again")


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        (v1.AgentToolGroup(name="builtin::rag"), InvalidArgumentError, "vector_db_ids"),
        (v1.AgentToolGroup(name="builtin::websearch"), UnsupportedError, "tools service"),
        (
            v1.AgentToolGroup(
                name="builtin::rag", args=struct({"vector_db_ids": ["a"], "query_config": {"mode": "best"}})
            ),
            InvalidArgumentError,
            "mode",
        ),
    ],
)
async def test_what_cannot_be_retrieved_is_refused_when_the_agent_is_made(
    client: StackClient, group: v1.AgentToolGroup, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await client.agents.create(v1.AgentConfig(model="echo", toolgroups=[group]))
