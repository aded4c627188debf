"""A router over two nodes in processes of their own: nodes are killed, stopped, drained, and the router restarted."""

import asyncio
import signal

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from stack_client.content import content
from stack_client.errors import (
    DeadlineExceededError,
    NotFoundError,
    StackError,
    UnavailableError,
    from_rpc_error,
)
from tests.router.conftest import Cluster, chat

LONG = "All foxes of the north know the way home by the light of the stars they were born under. " * 12


async def failure_of(call: object) -> StackError:
    """What an RPC fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    return from_rpc_error(failed.value)


async def test_no_unary_call_fails_when_a_node_is_killed_under_load(cluster: Cluster) -> None:
    text = " ".join(f"w{n}" for n in range(20))
    answered: list[str] = []

    async def ask(words: str) -> None:
        answered.append(await cluster.ask(f"slow {words}"))

    async def worker(number: int) -> None:
        for turn in range(6):
            await ask(f"{number}-{turn} {text}")

    async with asyncio.TaskGroup() as group:
        for number in range(24):
            group.create_task(worker(number))
        await cluster.until(lambda nodes: len(answered) >= 24 and nodes["a"].calls_in_flight > 3)
        cluster.signal("a", signal.SIGKILL)
    assert sorted(answered) == sorted(f"{number}-{turn} {text}" for number in range(24) for turn in range(6))
    assert (await cluster.listed())["a"].state in {v1.NODE_STATE_SUSPECT, v1.NODE_STATE_LOST}


async def test_streams_of_a_killed_node_end_with_node_lost_and_those_of_others_go_on(cluster: Cluster) -> None:
    streams = [cluster.stream("hang") for _ in range(4)]
    seen: list[list[str]] = [[] for _ in streams]

    async def read(number: int) -> StackError:
        with pytest.raises(grpc.aio.AioRpcError) as ended:  # noqa: PT012 (it fails as it is read)
            async for event in streams[number]:
                seen[number].append(event.progress.delta.text)
        return from_rpc_error(ended.value)

    readers = [asyncio.ensure_future(read(number)) for number in range(4)]
    nodes = await cluster.until(lambda _: all("".join(texts) == "one two" for texts in seen))
    assert (nodes["a"].calls_in_flight, nodes["b"].calls_in_flight) == (2, 2)
    cluster.signal("a", signal.SIGKILL)
    await cluster.until(lambda _: sum(reader.done() for reader in readers) == 2)
    for error in [reader.result() for reader in readers if reader.done()]:
        assert isinstance(error, UnavailableError)
        assert (error.reason, error.metadata) == ("NODE_LOST", {"node": "a"})
        assert "ask again" in error.message
    assert (await cluster.listed())["b"].calls_in_flight == 2
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_drain_moves_new_work_away_and_lets_the_old_end(cluster: Cluster) -> None:
    streams = [cluster.stream("slow " + "word " * 60) for _ in range(2)]
    await cluster.until(lambda nodes: all(node.calls_in_flight == 1 for node in nodes.values()))
    drained = await cluster.nodes.DrainNode(v1.DrainNodeRequest(node_id="a"))
    assert drained.node.state == v1.NODE_STATE_DRAINING
    assert {await cluster.ask(f"who is it, {n}?") for n in range(8)} == {"b"}
    for stream in streams:
        events = [event async for event in stream]
        assert events[-1].WhichOneof("event") == "complete"
    await cluster.nodes.DrainNode(v1.DrainNodeRequest(node_id="a", undo=True))
    assert {await cluster.ask(f"who is it, {n}?") for n in range(8)} == {"a", "b"}


async def test_a_node_that_is_stopped_politely_loses_nothing(cluster: Cluster) -> None:
    answered = []

    async def worker() -> None:
        answered.extend([await cluster.ask("slow one two three four five") for _ in range(12)])

    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(worker())
        stream = cluster.stream("slow " + "word " * 80)
        await cluster.until(lambda nodes: nodes["a"].calls_in_flight > 2)
        cluster.signal("a", signal.SIGTERM)
        events = [event async for event in stream]
    assert answered == ["one two three four five"] * 144
    assert events[-1].WhichOneof("event") == "complete"
    await asyncio.to_thread(cluster.end, "a")
    assert set(await cluster.listed()) == {"b"}


async def test_requests_with_one_beginning_stay_together_and_others_spread(cluster: Cluster) -> None:
    one_beginning = {await cluster.ask(f"{LONG} who are you, number {n}?") for n in range(8)}
    assert len(one_beginning) == 1
    others = [await cluster.ask(f"{n} {LONG} who are you?") for n in range(8)]
    assert sorted(others) == ["a"] * 4 + ["b"] * 4
    again = [await cluster.ask(f"{n} {LONG} who are you? And now?") for n in range(8)]
    assert again == others


async def test_a_session_stays_on_its_node(cluster: Cluster) -> None:
    answers = [[await cluster.ask("who", session=f"s{n}") for n in range(4)] for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert set(answers[0]) == {"a", "b"}


async def test_nodes_come_back_by_themselves_after_a_restart_of_the_router(cluster: Cluster) -> None:
    cluster.signal("router", signal.SIGKILL)
    await asyncio.to_thread(cluster.end, "router")
    cluster.start_router()
    await cluster.ready("a", "b")
    assert {await cluster.ask("who") for _ in range(4)} == {"a", "b"}


async def test_a_node_that_was_killed_and_started_again_answers_at_once(cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.signal(name, signal.SIGKILL)
        await asyncio.to_thread(cluster.end, name)
    for _ in range(5):  # the router's connections are in their back-off now
        assert isinstance(await failure_of(cluster.ask("who")), UnavailableError)
    cluster.start_node("a")
    await cluster.ready("a")
    assert await cluster.ask("who") == "a"


async def test_a_node_that_stands_still_loses_its_lease_and_its_calls_move_on(cluster: Cluster) -> None:
    cluster.signal("a", signal.SIGSTOP)
    # Of four calls at once at least one goes to the node that hears nothing; it is answered by the other.
    assert await asyncio.gather(*(cluster.ask(f"who {n}") for n in range(4))) == ["b"] * 4
    await cluster.until(lambda nodes: nodes["a"].state == v1.NODE_STATE_LOST)
    cluster.signal("a", signal.SIGCONT)
    await cluster.ready("a", "b")
    assert {await cluster.ask("who") for _ in range(4)} == {"a", "b"}


async def test_leaving_and_deadlines_end_the_work_at_the_node(cluster: Cluster) -> None:
    stream = cluster.stream("hang")
    await stream.read()
    waiting = asyncio.ensure_future(cluster.ask("hang", seconds=0.5))
    busy = await cluster.until(lambda nodes: sum(node.load.running for node in nodes.values()) == 2)
    assert sum(node.calls_in_flight for node in busy.values()) == 2
    stream.cancel()
    assert isinstance(await failure_of(waiting), DeadlineExceededError)
    await cluster.until(lambda nodes: not any(node.load.running + node.calls_in_flight for node in nodes.values()))


async def test_every_call_of_inference_goes_through(cluster: Cluster) -> None:
    text, dialog = content("one two"), v1.Dialog(messages=chat("one two").messages)
    words = v1.CompletionRequest(model_id="scripted", content=text)
    assert (await cluster.inference.Completion(words)).content == "one two"
    events = [event async for event in cluster.inference.StreamCompletion(v1.StreamCompletionRequest(request=words))]
    assert "".join(event.progress.delta for event in events) == events[-1].complete.content == "one two"
    dialogs = v1.BatchChatCompletionRequest(model_id="scripted", messages_batch=[dialog] * 3)
    assert len((await cluster.inference.BatchChatCompletion(dialogs)).batch) == 3
    texts = v1.BatchCompletionRequest(model_id="scripted", content_batch=[text] * 3)
    assert len((await cluster.inference.BatchCompletion(texts)).batch) == 3
    vectors = await cluster.inference.Embed(v1.EmbedRequest(model_id="words", contents=[text]))
    assert len(vectors.embeddings[0].values) == 16
    refused = [
        cluster.inference.Tokenize(v1.TokenizeRequest(model_id="scripted", text="one")),
        cluster.inference.Detokenize(v1.DetokenizeRequest(model_id="scripted", token_ids=[1])),
        cluster.inference.Rerank(v1.RerankRequest(model="words", items=[text])),
        cluster.inference.Classify(v1.ClassifyRequest(model_id="words", texts=["one"])),
    ]
    reasons = [(await failure_of(call)).reason for call in refused]
    assert reasons == ["UNSUPPORTED", "UNSUPPORTED", "WRONG_MODEL_TYPE", "WRONG_MODEL_TYPE"]


async def test_texts_are_classified_through_the_router(cluster: Cluster) -> None:
    script = Struct()
    script.update({"script": [{"match": "ignore", "scores": {"malicious": 0.9}}]})
    guard = v1.RegisterModelRequest(
        model_id="guard", provider_id="scripted", model_type=v1.MODEL_TYPE_CLASSIFIER, metadata=script
    )
    await cluster.models.RegisterModel(guard)
    await cluster.until(lambda nodes: all("guard" in node.ready_models for node in nodes.values()))
    request = v1.ClassifyRequest(model_id="guard", texts=["hello", "ignore this"], windows=v1.ClassifyWindows())
    response = await cluster.inference.Classify(request)
    assert [result.label for result in response.results] == ["benign", "malicious"]


async def test_items_are_reranked_through_the_router(cluster: Cluster) -> None:
    model = v1.RegisterModelRequest(model_id="ranks", provider_id="scripted", model_type=v1.MODEL_TYPE_RERANK)
    await cluster.models.RegisterModel(model)
    await cluster.until(lambda nodes: all("ranks" in node.ready_models for node in nodes.values()))
    items = [content(text) for text in ("a fox", "an old owl")]
    response = await cluster.inference.Rerank(v1.RerankRequest(model="ranks", query=content("old owl"), items=items))
    assert [(item.index, item.relevance_score) for item in response.data] == [(1, 1.0), (0, 0.0)]


async def test_models_of_all_nodes_are_one_list_and_registering_reaches_all(cluster: Cluster) -> None:
    listed = await cluster.models.ListModels(v1.ListModelsRequest())
    assert [model.identifier for model in listed.data] == ["scripted", "words"]
    extra = v1.RegisterModelRequest(model_id="extra", provider_id="scripted")
    await cluster.models.RegisterModel(extra)
    await cluster.models.RegisterModel(extra)
    await cluster.until(lambda nodes: all("extra" in node.ready_models for node in nodes.values()))
    got = await cluster.models.GetModel(v1.GetModelRequest(model_id="extra"))
    assert got.model.state == v1.MODEL_STATE_READY
    request = chat("echo")
    request.model_id = "extra"
    assert (await cluster.inference.ChatCompletion(request)).model_id == "extra"
    await cluster.models.UnregisterModel(v1.UnregisterModelRequest(model_id="extra"))
    error = await failure_of(cluster.inference.ChatCompletion(request))
    assert isinstance(error, NotFoundError)
    assert error.message == "no model 'extra'; this stack serves: scripted, words"
    missing = await failure_of(cluster.models.GetModel(v1.GetModelRequest(model_id="extra")))
    assert missing.reason == "MODEL_NOT_FOUND"


async def test_without_nodes_the_router_says_so_and_when_to_come_back(cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.signal(name, signal.SIGKILL)
    await cluster.until(lambda nodes: all(node.state == v1.NODE_STATE_LOST for node in nodes.values()))
    error = await failure_of(cluster.inference.ChatCompletion(chat("who")))
    assert isinstance(error, UnavailableError)
    assert "no inference node is registered" in error.message
    assert error.retry_after
