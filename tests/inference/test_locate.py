"""Where models come from: paths, packages, and the hub's local cache, which the tests make by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llamastack import v1
from services.inference.locate import locate
from stack_client.errors import InvalidArgumentError
from tests.inference.classifiers import deberta_folder
from tests.inference.conftest import running_node
from tests.inference.test_classify import classify

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def nothing(message: str) -> None:
    raise AssertionError(message)  # a download would say so


def cached(cache: Path, name: str, source: Path) -> Path:
    """A snapshot in the hub's cache, as its library lays it out."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(source, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_is_found_in_the_local_cache(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    snapshot = cached(cache, "someone/some-guard", deberta_folder(tmp_path / "source"))
    assert locate("someone/some-guard", report=nothing) == snapshot


def test_a_path_comes_before_a_hub_id(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert locate("someone/model", report=nothing) == Path("someone/model")


def test_without_network_an_unknown_hub_id_says_what_to_do(cache: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="hf download someone/unknown") as failure:
        locate("someone/unknown", report=nothing)
    assert "HF_HUB_OFFLINE" in failure.value.message
    assert failure.value.field == "provider_model_id"


def test_a_snapshot_that_was_cut_off_is_not_taken_for_a_model(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, source / shards[0])
    cached(cache, "someone/half", source)
    with pytest.raises(InvalidArgumentError, match="only in part"):
        locate("someone/half", report=nothing)
    save_file({"b": torch.zeros(1)}, source / shards[1])
    snapshot = cached(cache, "someone/whole", source)
    assert locate("someone/whole", report=nothing) == snapshot


@pytest.mark.parametrize("name", ["nothing", "./a/b", "/no/such/folder", "a/b/c", "packaged:nothing", "x" * 5000])
def test_what_is_neither_path_nor_hub_id_is_refused(cache: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        locate(name, report=nothing)
    assert failure.value.field == "provider_model_id"


async def test_a_classifier_from_the_hubs_cache_serves(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    cached(cache, "someone/some-guard", deberta_folder(tmp_path / "source", labels=2))
    model = {"model_id": "guard", "provider_model_id": "someone/some-guard", "model_type": "classifier"}
    async with running_node(tmp_path / "node", [model]) as node:
        response: v1.ClassifyResponse = await classify(node, "guard", "hello")
    assert list(response.labels) == ["LABEL_0", "LABEL_1"]
