"""Reranking: random cross-encoders and late interaction against their references, over gRPC, scripted, remote."""

import asyncio
import json
import string
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from tokenizers import Tokenizer

from llamastack import v1
from services.inference.engine.reranker import load_reranker
from services.inference.rerank_text import rerank_model
from stack_client.calls import unary
from stack_client.content import content
from stack_client.errors import InvalidArgumentError, StackError, UnavailableError, UnsupportedError
from tests.inference.classifiers import bert_folder, change_config, deberta_folder, late_interaction_folder
from tests.inference.conftest import MINILM, SCRIPTED, Node, running_node

QUERY = "how old are owls"
ITEMS = [
    "Owls grow old.",
    "",
    "x",
    "A fox is no owl! It (the fox) eats; it sleeps.",
    "word " * 30,
    "Größe 漢字 [SEP] ¿qué?",
]
WORDS = {"model_id": "shares", "provider_id": "scripted", "model_type": "rerank"}
MANY = [f"{n} " + "b" * 60 for n in range(1000)]
IDENTITY = "torch.nn.modules.linear.Identity"


def rerank(folder: Path, model_id: str = "cross") -> dict[str, Any]:
    return {"model_id": model_id, "provider_model_id": str(folder), "model_type": "rerank"}


def ours(folder: Path, query: str, items: Sequence[str]) -> torch.Tensor:
    """Raw outputs of the engine's model for the service's token ids, all in one batch."""
    model = load_reranker(folder, device="cpu")
    pairs, firsts, _ = rerank_model(folder, architecture=model.architecture).pairs(query, items)
    alone = torch.cat([model.logits([pair], [first]) for pair, first in zip(pairs, firsts, strict=True)])
    together = model.logits(pairs, firsts)
    assert torch.allclose(alone, together, atol=2e-5, rtol=2e-5)
    return together[:, 0]


def theirs(folder: Path, query: str, items: Sequence[str]) -> torch.Tensor:
    """Raw outputs of transformers for pairs that the tokenizers library makes and cuts."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(model.config.max_position_embeddings, strategy="only_second")
    outputs = []
    for item in items:
        pair = tokenizer.encode(query, item)
        ids, types = torch.tensor([pair.ids]), torch.tensor([pair.type_ids])
        assert types.any()
        with torch.no_grad():
            outputs.append(model(ids, token_type_ids=types).logits[0, 0])
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", ["bert", "deberta", "deberta with token types"])
def test_a_cross_encoder_scores_and_cuts_pairs_as_transformers_does(kind: str, tmp_path: Path) -> None:
    if kind == "bert":
        bert_folder(tmp_path, labels=1)
    else:
        types = {"type_vocab_size": 2} if "types" in kind else {}
        deberta_folder(tmp_path, labels=1, max_position_embeddings=64, **types)
    wanted = theirs(tmp_path, QUERY, ITEMS)
    assert len({round(float(score), 4) for score in wanted}) == len(ITEMS)
    assert torch.allclose(ours(tmp_path, QUERY, ITEMS), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"query_maxlen": 12, "doc_maxlen": 40, "mask_punctuation": False},
        {"query_maxlen": 40, "doc_maxlen": 24, "attend_to_mask_tokens": True, "query_token_id": "[UNK]"},
    ],
)
def test_late_interaction_scores_as_its_paper_says(settings: dict[str, Any] | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file  # noqa: PLC0415

    late_interaction_folder(tmp_path, settings=settings)
    said = {
        "query_maxlen": 32, "doc_maxlen": 180, "mask_punctuation": True, "attend_to_mask_tokens": False,
        "query_token_id": "[unused0]", **(settings or {}),
    }  # fmt: skip
    tensors = load_file(tmp_path / "model.safetensors")
    model = transformers.BertModel(transformers.BertConfig.from_pretrained(tmp_path), add_pooling_layer=False).eval()
    model.load_state_dict({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("bert.")})
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True

    def id_of(name: str) -> int:
        index = tokenizer.token_to_id(name)
        assert index is not None
        return index

    def ids_of(text: str, marker: str, most: int) -> list[int]:
        return [1, id_of(marker), *tokenizer.encode(text, add_special_tokens=False).ids[: most - 3], 2]

    def vectors(ids: list[int], mask: list[int]) -> torch.Tensor:
        with torch.no_grad():
            states = model(torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state[0]
        return torch.nn.functional.normalize(states @ tensors["linear.weight"].T, dim=-1)

    query = ids_of(QUERY, said["query_token_id"], 64)
    missing = max(0, said["query_maxlen"] - len(query))
    mask = [1] * len(query) + [int(said["attend_to_mask_tokens"])] * missing
    query_vectors = vectors(query + [id_of("[MASK]")] * missing, mask)
    wanted = []
    for item in ITEMS:
        ids = ids_of(item, "[unused1]", min(64, said["doc_maxlen"]))
        names = [tokenizer.id_to_token(index) or "" for index in ids]
        kept = [not said["mask_punctuation"] or name not in string.punctuation for name in names]
        wanted.append((query_vectors @ vectors(ids, [1] * len(ids))[kept].T).max(1).values.sum())
    assert torch.allclose(ours(tmp_path, QUERY, ITEMS), torch.stack(wanted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"architectures": ["XLMRobertaForSequenceClassification"]},
            "XLMRobertaForSequenceClassification is no rerank",
        ),
        ({"architectures": ["BertModel"]}, "known: BertForSequenceClassification"),
        ({"architectures": None}, "architecture none"),
        ({"architectures": ["HF_ColBERT"]}, r"linear.weight is missing"),
    ],
)
def test_a_folder_that_does_not_rerank_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    change_config(bert_folder(tmp_path, labels=1), **changes)
    with pytest.raises(ValueError, match=said):
        load_reranker(tmp_path, device="cpu")


def test_a_classifier_is_no_cross_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 classes"):
        load_reranker(bert_folder(tmp_path, labels=3), device="cpu")


def test_a_model_without_a_second_token_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no token type"):
        load_reranker(bert_folder(tmp_path, labels=1, type_vocab_size=1), device="cpu")


@pytest.mark.parametrize(("metadata", "said"), [({"similarity": "l2"}, "l2"), ({"doc_token_id": "[D]"}, r"\[D\]")])
def test_late_interaction_of_another_kind_is_refused(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_reranker(late_interaction_folder(tmp_path, settings=metadata), device="cpu")


def test_a_tokenizer_that_does_not_join_texts_is_refused(tmp_path: Path) -> None:
    file = bert_folder(tmp_path, labels=1) / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["post_processor"]["pair"] = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    file.write_text(json.dumps(spec))
    with pytest.raises(InvalidArgumentError, match="how two texts are joined"):
        rerank_model(tmp_path, architecture="BertForSequenceClassification")


def test_the_activation_is_the_configurations(tmp_path: Path) -> None:
    bert_folder(tmp_path, labels=1)
    for stated, activation in (
        ({}, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.1.0"}}, "identity"),
    ):
        change_config(tmp_path, sentence_transformers=None, sbert_ce_default_activation_function=None)
        change_config(tmp_path, **stated)
        assert rerank_model(tmp_path, architecture="BertForSequenceClassification").activation == activation
    change_config(tmp_path, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(InvalidArgumentError, match=r"activation\.Tanh"):
        rerank_model(tmp_path, architecture="BertForSequenceClassification")


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node with random models of every kind."""
    cross, raw, late = (tmp_path_factory.mktemp(name) for name in ("cross", "raw", "late"))
    change_config(bert_folder(raw, labels=1), sentence_transformers={"activation_fn": IDENTITY})
    models = [
        rerank(bert_folder(cross, labels=1)),
        rerank(raw, "raw"),
        rerank(late_interaction_folder(late), "late"),
        {"model_id": "classes", "provider_model_id": str(cross), "model_type": "classifier"},
        MINILM,
        SCRIPTED,
        WORDS,
    ]
    async with running_node(tmp_path_factory.mktemp("rerank"), models) as node:
        for model in models:
            await node.client.models.wait_ready(str(model["model_id"]), timeout=60)
        yield node


async def test_items_come_best_first_with_the_models_scores(node: Node, tmp_path: Path) -> None:
    outputs = ours(bert_folder(tmp_path, labels=1), QUERY, ITEMS)
    order = sorted(range(len(ITEMS)), key=lambda index: -float(outputs[index]))
    for model, wanted in (("cross", outputs.sigmoid()), ("raw", outputs)):
        found = await node.client.inference.rerank(model, QUERY, ITEMS)
        assert [index for index, _ in found] == order
        assert [score for _, score in found] == pytest.approx([float(wanted[index]) for index in order], abs=1e-4)


async def test_as_many_results_come_as_asked_for(node: Node) -> None:
    whole = await node.client.inference.rerank("cross", QUERY, ITEMS)
    assert await node.client.inference.rerank("cross", QUERY, ITEMS, max_num_results=2) == whole[:2]
    assert await node.client.inference.rerank("cross", QUERY, ITEMS, max_num_results=99) == whole


async def test_equal_items_keep_their_order(node: Node) -> None:
    for model in ("cross", "late", "shares"):
        found = await node.client.inference.rerank(model, QUERY, ["same thing"] * 5)
        assert [index for index, _ in found] == list(range(5)), model


@pytest.mark.parametrize("model", ["cross", "late"])
async def test_an_item_scores_the_same_beside_any_neighbours(node: Node, model: str) -> None:
    alone = {
        (query, item): (await node.client.inference.rerank(model, query, [item]))[0][1]
        for query in (QUERY, "fox")
        for item in ITEMS
    }
    queries = [QUERY, "fox"] * 4
    answers = await asyncio.gather(*(node.client.inference.rerank(model, query, ITEMS * 3) for query in queries))
    for query, answer in zip(queries, answers, strict=True):
        for index, score in answer:
            assert score == pytest.approx(alone[query, ITEMS[index % len(ITEMS)]], abs=1e-4)


async def test_only_the_item_is_cut_and_a_query_beyond_the_window_is_refused(node: Node) -> None:
    short = await node.client.inference.rerank("cross", QUERY, ["a" * 45])
    assert await node.client.inference.rerank("cross", QUERY, ["a" * 45 + "b" * 9000]) == short
    assert await node.client.inference.rerank("cross", "q" * 60, ["a"])
    for model, length, most in (("cross", 61, 60), ("late", 62, 61)):
        with pytest.raises(InvalidArgumentError, match=f"at most {most}") as failure:
            await node.client.inference.rerank(model, "q" * length, ["a"])
        assert (failure.value.reason, failure.value.field) == ("CONTEXT_LENGTH_EXCEEDED", "query")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"items": []}, "items"),
        ({"items": [content("a")] * 1001}, "items"),
        ({"max_num_results": 0}, "max_num_results"),
        ({"model": ""}, "model"),
        ({"query": v1.InterleavedContent(items=[v1.ContentItem()])}, "query.items[0]"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(node: Node, fields: dict[str, Any], where: str) -> None:
    request = v1.RerankRequest(**{"model": "cross", "query": content("a"), "items": [content("a")], **fields})
    with pytest.raises(InvalidArgumentError) as failure:
        await unary(v1.InferenceServiceStub(node.client.channel("inference")).Rerank(request))
    assert failure.value.field == where


async def test_an_image_is_unsupported(node: Node) -> None:
    image = v1.InterleavedContent(items=[v1.ContentItem(image=v1.ImageContent(data=b"\x89PNG"))])
    request = v1.RerankRequest(model="cross", query=content("a"), items=[content("a"), image])
    with pytest.raises(UnsupportedError) as failure:
        await unary(v1.InferenceServiceStub(node.client.channel("inference")).Rerank(request))
    assert failure.value.field == "items[1].items[0].image"


@pytest.mark.parametrize("model", ["scripted", "all-minilm-l6-v2", "classes"])
async def test_models_of_other_types_do_not_rerank(node: Node, model: str) -> None:
    with pytest.raises(InvalidArgumentError, match="needs a rerank model") as failure:
        await node.client.inference.rerank(model, "a", ["b"])
    assert (failure.value.reason, failure.value.field) == ("WRONG_MODEL_TYPE", "model")


async def test_a_rerank_model_does_nothing_else_but_count_tokens(node: Node) -> None:
    for call in (node.client.inference.chat("cross", "hi"), node.client.inference.embed("cross", "hi")):
        with pytest.raises(InvalidArgumentError) as failure:
            await call
        assert failure.value.reason == "WRONG_MODEL_TYPE"
    ids = await node.client.inference.tokenize("cross", "a")
    assert await node.client.inference.detokenize("cross", ids) == "a"


async def test_a_rerank_model_tells_what_it_is(node: Node) -> None:
    facts = dict((await node.client.models.get("cross")).metadata)
    assert (facts["window"], facts["activation"]) == (64, "sigmoid")
    assert facts["architecture"] == "BertForSequenceClassification"
    assert dict((await node.client.models.get("late")).metadata)["architecture"] == "HF_ColBERT"


async def test_a_cancelled_call_leaves_the_engine_to_others(node: Node) -> None:
    calls = [asyncio.create_task(node.client.inference.rerank("cross", "a", MANY)) for _ in range(3)]
    engine = node.torch.engine
    async with asyncio.timeout(30):
        while not engine._jobs:
            await asyncio.sleep(0.001)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(30):
        while engine._jobs:
            await asyncio.sleep(0.01)
    assert len(await node.client.inference.rerank("cross", "a", ["b"])) == 1


async def test_calls_of_a_model_that_is_unregistered_end(node: Node, tmp_path: Path) -> None:
    await node.client.models.register(
        "brief",
        provider_model_id=str(bert_folder(tmp_path, labels=1)),
        provider_id="torch",
        model_type=v1.MODEL_TYPE_RERANK,
    )
    await node.client.models.wait_ready("brief", timeout=60)
    channel = grpc.aio.insecure_channel(node.address)  # the client's own would ask again
    request = v1.RerankRequest(model="brief", query=content("a"), items=[content(item) for item in MANY])
    call = asyncio.create_task(unary(v1.InferenceServiceStub(channel).Rerank(request, timeout=60)))
    async with asyncio.timeout(30):
        while all(job.model != "brief" for job in node.torch.engine._jobs.values()):
            await asyncio.sleep(0.001)
    await node.client.models.unregister("brief")
    with pytest.raises(UnavailableError, match="unregistered"):
        await call
    await channel.close(None)


async def test_a_scripted_model_scores_the_share_of_words(node: Node) -> None:
    items = ["an OLD owl", "nothing", "owl, owl!", "old owls' owl"]
    found = await node.client.inference.rerank("shares", "the old, old owl", items)
    assert [index for index, _ in found] == [0, 3, 2, 1]
    assert [score for _, score in found] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0.0])
    assert await node.client.inference.rerank("shares", "", ["a"]) == [(0, 0.0)]


class Ranking(BaseHTTPRequestHandler):
    """An endpoint whose model scores an item by its length; `broken` is a model that leaves one out."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "ranks"}, {"id": "broken"}]})

    def do_POST(self) -> None:
        assert self.path == "/v1/rerank"
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert body["query"] == QUERY
        results = [{"index": i, "relevance_score": len(text) / 10} for i, text in enumerate(body["documents"])]
        results.sort(key=lambda entry: -entry["relevance_score"])
        self._answer({"model": body["model"], "results": results[body["model"] == "broken" :]})

    def _answer(self, answer: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_args: object) -> None:
        """Nothing."""


@contextmanager
def ranking_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranking) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


async def test_endpoints_rerank_where_their_dialect_can(tmp_path: Path) -> None:
    with ranking_server() as url:
        dialects = ("openai", "vllm", "sglang", "llamacpp")
        places = {name: {"base_url": url, "dialect": name, "wait_seconds": 0} for name in dialects}
        models: list[dict[str, Any]] = [
            {
                "model_id": name, "provider_id": "openai", "provider_model_id": "ranks", "model_type": "rerank",
                "metadata": {"endpoint": name},
            }
            for name in dialects
        ]  # fmt: skip
        models += [{**models[1], "model_id": "broken", "provider_model_id": "broken"}, SCRIPTED]
        async with running_node(tmp_path, models, openai={"endpoints": places}) as node:
            for name in ("vllm", "llamacpp"):
                found = await node.client.inference.rerank(name, QUERY, ["aa", "aaaa", "bb"], max_num_results=2)
                assert [index for index, _ in found] == [1, 0]
                assert [score for _, score in found] == pytest.approx([0.4, 0.2])
            with pytest.raises(UnavailableError, match="3 items with a score each"):
                await node.client.inference.rerank("broken", QUERY, ["a", "b", "c"])
            for name in ("openai", "sglang"):
                with pytest.raises(StackError, match=f"dialect {name} has no call that reranks"):
                    await node.client.models.wait_ready(name, timeout=10)
