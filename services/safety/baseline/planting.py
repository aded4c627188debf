"""Attacks inside harmless passages, each with its clean twin: what a detector of text from tools must tell apart."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from services.safety.baseline.corpora import Row

_LONG = 3


def plant(attacks: Sequence[Row], hosts: Sequence[Row]) -> list[Row]:
    """Each attack inside a host and the same host without it; `group` names the pair.

    Hosts are used once. Every third host is three passages long. Where the attack stands follows from its hash: before,
    after, or between two sentences of the host.
    """
    rows: list[Row] = []
    remaining = list(hosts)
    for index, attack in enumerate(attacks):
        wanted = _LONG if index % _LONG == 0 else 1
        if len(remaining) < wanted:
            break
        passage = "\n\n".join(row.text for row in remaining[:wanted])
        del remaining[:wanted]
        group = f"{attack.source}:{index}"
        planted = _insert(passage, attack.text)
        rows.append(replace(attack, text=planted, surface="retrieved", group=group))
        rows.append(replace(hosts[0], text=passage, surface="retrieved", group=group))
    return rows


def _insert(passage: str, attack: str) -> str:
    digest = hashlib.sha256(attack.encode(errors="surrogatepass")).digest()
    if digest[0] % 3 == 0:
        return f"{attack}\n{passage}"
    if digest[0] % 3 == 1:
        return f"{passage}\n{attack}"
    sentences = passage.split(". ")
    place = 1 + digest[1] % max(1, len(sentences) - 1)
    before, after = ". ".join(sentences[:place]), ". ".join(sentences[place:])
    return f"{before}. {attack} {after}"
