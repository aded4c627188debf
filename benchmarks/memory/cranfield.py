"""Quality of retrieval on Cranfield, through a running stack with its defaults.

To reach: hybrid >= 0.44 nDCG@10, and never below its better leg by more than 1 %.
"""

import time

from benchmarks.measure import report
from benchmarks.memory.corpus import Collection, Quality, folder, load, measure
from benchmarks.memory.stack import running
from stack_client import SyncStackClient

BANK = "cranfield"
PASSAGES = 30  # enough for ten documents
TARGET = 0.44


def main() -> None:
    """Load the collection, ask all questions in each mode."""
    where = folder()
    if not where.exists():
        print(f"Cranfield is not at {where}; set CRANFIELD to its folder")
        return
    collection = load(where)
    with running() as client:
        client.memory.create(BANK)
        begun = time.monotonic()
        documents = [{"id": name, "text": text} for name, text in collection.documents.items() if text]
        for start in range(0, len(documents), 100):
            answer = client.memory.insert(BANK, documents[start : start + 100], timeout=600)
            assert not answer.failures, answer.failures[0]
        report("memory cranfield: documents loaded", len(documents) / (time.monotonic() - begun), "per second")
        modes = {mode: _quality(client, collection, mode=mode) for mode in ("vector", "keyword", "hybrid")}
        modes["hybrid weighted 0.5"] = _quality(client, collection, mode="hybrid", ranker="weighted")
        modes["hybrid mmr 0.3"] = _quality(client, collection, mode="hybrid", ranker="mmr")
    for name, quality in modes.items():
        report(f"memory cranfield: {name} nDCG@10", quality.ndcg, "")
        report(f"memory cranfield: {name} recall@10", quality.recall, "")
        report(f"memory cranfield: {name} MRR@10", quality.mrr, "")
    better = max(modes["vector"].ndcg, modes["keyword"].ndcg)
    report("memory cranfield: hybrid against its better leg", modes["hybrid"].ndcg / better, "x")
    report("memory cranfield: hybrid against the target", modes["hybrid"].ndcg / TARGET, "x")


def _quality(client: SyncStackClient, collection: Collection, **settings: str) -> Quality:
    runs = []
    for question in collection.questions:
        hits = client.memory.search(BANK, question, k=PASSAGES, **settings)
        runs.append(list(dict.fromkeys(hit.document_id for hit in hits)))
    return measure(runs, collection.relevant)
