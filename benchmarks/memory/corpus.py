"""The Cranfield collection: 1,400 abstracts, 225 questions, judgements; and the measures of retrieval.

The files are looked for in the folder of `CRANFIELD`, else in `../shared/data/cranfield` beside the checkout. Records
1401 to 1405 do not belong to the collection; judgements count the questions by their order, not by their ids; codes 1
to 4 are relevant, -1 is not.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

DOCUMENTS, QUESTIONS = 1400, 225
CUT = 10


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Documents, questions, and which documents answer them."""

    documents: Mapping[str, str]
    """Texts by id, as they stand, titles first; two are empty."""
    questions: Sequence[str]
    """In the order of the judgements."""
    relevant: Sequence[frozenset[str]]
    """Ids of the documents that answer each question."""


def folder() -> Path:
    """Where the files are."""
    return Path(os.environ.get("CRANFIELD", Path(__file__).parents[3] / "shared" / "data" / "cranfield"))


def load(where: Path) -> Collection:
    """Read the three files."""
    documents = {}
    for record in _records(where / "cran.all.1400"):
        number = record.split("\n", 1)[0].strip()
        if int(number) <= DOCUMENTS:
            documents[number] = _field(record, "W")
    questions = [_field(record, "W").replace("\n", " ") for record in _records(where / "cran.qry")][:QUESTIONS]
    relevant: list[set[str]] = [set() for _ in questions]
    for line in (where / "cranqrel").read_text().splitlines():
        columns = line.split()
        if len(columns) >= 3 and int(columns[2]) > 0 and columns[1] in documents:
            relevant[int(columns[0]) - 1].add(columns[1])
    return Collection(documents=documents, questions=questions, relevant=[frozenset(one) for one in relevant])


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over all questions, at ten."""

    ndcg: float
    recall: float
    mrr: float


def measure(runs: Sequence[Sequence[str]], relevant: Sequence[frozenset[str]]) -> Quality:
    """Binary nDCG@10, recall@10 and MRR@10 of ranked document ids, one list per question."""
    judged = [(run[:CUT], wanted) for run, wanted in zip(runs, relevant, strict=True) if wanted]
    return Quality(
        ndcg=fmean(_ndcg(run, wanted) for run, wanted in judged),
        recall=fmean(len(wanted.intersection(run)) / len(wanted) for run, wanted in judged),
        mrr=fmean(
            next((1 / place for place, one in enumerate(run, 1) if one in wanted), 0.0) for run, wanted in judged
        ),
    )


def _ndcg(run: Sequence[str], wanted: frozenset[str]) -> float:
    gain = sum(1 / math.log2(place + 1) for place, one in enumerate(run, 1) if one in wanted)
    return gain / sum(1 / math.log2(place + 1) for place in range(1, min(CUT, len(wanted)) + 1))


def _records(path: Path) -> list[str]:
    return re.split(r"^\.I ", path.read_text(), flags=re.MULTILINE)[1:]


def _field(record: str, name: str) -> str:
    found = re.search(rf"^\.{name}\n(.*?)(?=^\.[A-Z]$|\Z)", record, flags=re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""
