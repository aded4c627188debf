"""Who goes first, and who shares what: priorities, tenants, and embeddings beside decoding."""

import asyncio
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path

import pytest

from llamastack import v1
from services.inference.engine import commands
from services.inference.engine.bert import BertEmbedder
from services.inference.engine.request import EngineLimits
from services.inference.engine.worker import WINDOWS_PER_TURN, Worker
from services.inference.packaged import find_packaged
from services.llama.config import PRESETS
from services.llama.model import Llama
from stack_client.content import content
from tests.inference.conftest import SMOL, Node, running_node
from tests.inference.engines import torch_engine
from tests.inference.test_paging import ask

MODEL = "smollm2-135m"
DECODING, TOKENS = 3, 40


async def test_cached_prompts_are_a_tenants_own(real: Node) -> None:
    stub = v1.InferenceServiceStub(real.client.channel("inference"))
    message = v1.Message(
        user=v1.UserMessage(content=content("Why do tenants never share what they have asked before?"))
    )
    request = v1.ChatCompletionRequest(
        model_id=MODEL, messages=[message], sampling_params=v1.SamplingParams(max_tokens=2)
    )
    cached = []
    for tenant in ("acme", "umbrella", "acme"):
        answer = await stub.ChatCompletion(request, metadata=(("x-tenant", tenant),))
        cached.append(answer.usage.cached_tokens)
    assert cached[:2] == [0, 0]
    assert cached[2] > 0


async def test_a_higher_priority_is_answered_first_in_single_calls_and_in_batches(tmp_path: Path) -> None:
    order = []
    async with running_node(tmp_path, [SMOL], torch={"dtype": "float32", "running_requests": 1}) as node:
        stub = v1.InferenceServiceStub(node.client.channel("inference"))
        params = v1.SamplingParams(max_tokens=3)
        message = v1.Message(user=v1.UserMessage(content=content("Hi")))

        async def single(priority: int) -> None:
            await node.client.inference.chat(MODEL, "Hello", max_tokens=3, priority=priority)
            order.append(f"chat {priority}")

        async def batch(priority: int) -> None:
            dialogs = [v1.Dialog(messages=[message])]
            await stub.BatchChatCompletion(
                v1.BatchChatCompletionRequest(
                    model_id=MODEL, messages_batch=dialogs, sampling_params=params, priority=priority
                )
            )
            order.append(f"batch {priority}")

        async def text(priority: int) -> None:
            await node.client.inference.complete(MODEL, "The sea", max_tokens=3, priority=priority)
            order.append(f"text {priority}")

        async with asyncio.TaskGroup() as group:
            blocker = node.client.inference.stream_chat(MODEL, "Tell me a very long story.", max_tokens=4000)
            async for event in blocker:
                if event.WhichOneof("event") == "progress":
                    break
            group.create_task(single(-1))
            group.create_task(text(2))
            group.create_task(batch(1))
            async with asyncio.timeout(20):
                while node.torch.engine.figures[MODEL].waiting < 3:
                    await asyncio.sleep(0)
            await blocker.aclose()
    assert order == ["text 2", "batch 1", "chat -1"]


@pytest.fixture(scope="module")
def embedder() -> BertEmbedder:
    return BertEmbedder.load(find_packaged("all-minilm-l6-v2"), device="cpu")


def test_embedding_and_decoding_take_turns_and_neither_waits_for_the_other(embedder: BertEmbedder) -> None:
    ours, theirs = Pipe()
    worker = Worker(theirs)
    worker._embedders["embed"] = embedder
    worker._engines["llm"] = torch_engine(Llama.seeded(PRESETS["tiny"], seed=1), limits=EngineLimits())
    for number in range(DECODING):
        worker._handle(commands.Add(model="llm", request=ask(f"r{number}", (1, 2, number), max_tokens=TOKENS)))
    waiting = [f"e{number}" for number in range(3)]
    for name in waiting:  # the first one is large, and the others do not wait for its end
        texts = [[101, 7592, 102]] * (WINDOWS_PER_TURN * 5 if name == "e0" else 1)
        worker._handle(commands.Embed(model="embed", request_id=name, texts=texts))
    tokens: Counter[str] = Counter()
    ended: dict[str, int] = {}
    for turn in range(1, TOKENS + 1):
        worker._handle(commands.Embed(model="embed", request_id=f"late{turn}", texts=[[101, 2397, 102]]))
        worker._turn()
        while ours.poll():
            event = ours.recv()
            if isinstance(event, commands.Stepped):
                tokens.update(emission.request_id for emission in event.emissions)
            elif isinstance(event, commands.Embedded):
                ended[event.request_id] = turn
        # However many embeddings come, no turn is without a token of every request, or without an embedding step.
        assert set(tokens.values()) == {turn}
        assert len(ended) >= turn - 5
    assert (ended["e1"], ended["e2"]) == (2, 3)
    assert worker._engines["llm"].idle
    assert "e0" in ended
