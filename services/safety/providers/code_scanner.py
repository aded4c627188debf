"""The code scanner: bandit over the Python code in a text, in a process of its own with bounds on time and size.

Fenced blocks are scanned on every surface; on the surface `code` the whole text is code unless it holds fences. Only
Python is read. Parameter `on_unsupported` says what a block in another language means elsewhere: `block` (a finding of
score 1), `warn` (a finding of score 0.1) or `allow`; on the surface `code` it always lowers the coverage, so that the
text counts as not judged. `timeout` bounds a scan in seconds. Verdicts have in their metadata: `blocks`, `languages`
that were not read, `syntax_errors` with their lines, and `issues` with bandit's test, line (`first`), severity and
confidence. Nothing there quotes the code: it may hold secrets, and verdicts are logged.
"""

import asyncio
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamastack import v1
from services.runtime.offload import offload
from services.safety import guard
from services.safety import params as read
from services.safety.guard.code_blocks import NO_CODE, PYTHON, CodeBlock, fenced_blocks, line_starts
from services.safety.shield import Judgement, ProviderContext, Shield, Span, Subject, Surface
from stack_client.errors import FailedPreconditionError

MAX_CHARS = 200_000
"""Characters of code that are scanned; the rest lowers the coverage."""
UNSUPPORTED = "unsupported_language"
_SEVERITY = {"HIGH": 0.9, "MEDIUM": 0.6, "LOW": 0.3}
_DISCOUNT = {"HIGH": 0.0, "MEDIUM": 0.05, "LOW": 0.2}
_UNSUPPORTED_SCORE = {"block": 1.0, "warn": 0.1, "allow": 0.0}
_WORKER = Path(guard.__file__).parent / "bandit_worker.py"
_MAX_ISSUES = 20
_PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.)(?: |$)")
_LANGUAGE = re.compile(r"[a-z][a-z0-9+#.-]{0,15}")


@dataclass(frozen=True, kw_only=True)
class Issue:
    """Something that bandit found."""

    test_id: str
    score: float
    start: int
    end: int
    facts: Mapping[str, Any]


class CodeScannerProvider:
    """Makes code scanners; the shield's provider id has no meaning for them."""

    provider_type = "inline::code-scanner"

    def __init__(self, context: ProviderContext) -> None:
        """Takes nothing from the mesh."""

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> Shield:  # noqa: ARG002 (one rule set)
        """A scanner.

        Raises:
            FailedPreconditionError: If bandit is not installed.
        """
        if importlib.util.find_spec("bandit") is None:
            message = "the code scanner needs bandit; install it with pip install 'llama-stack-mesh[server]'"
            raise FailedPreconditionError(message)
        read.refuse_unknown(params, ("on_unsupported", "timeout"))
        return CodeScanner(
            on_unsupported=read.choice(params, "on_unsupported", _UNSUPPORTED_SCORE, default="warn"),
            seconds=read.number(params, "timeout", default=10, low=0.1, high=60),
        )


class CodeScanner:
    """Judges code without running it."""

    default_warn = 0.1
    """Findings below the threshold, such as code in another language, are warnings."""

    baseline = False
    streams = False  # half a block is another program than the whole
    every_message = False

    def __init__(self, *, on_unsupported: str, seconds: float) -> None:
        self._on_unsupported = on_unsupported
        self._seconds = seconds

    def default_threshold(self, surface: Surface) -> float:  # noqa: ARG002 (the same everywhere)
        """0.5: from medium severity at medium confidence, or high severity at any."""
        return 0.5

    async def judge(self, subject: Subject) -> Judgement:
        """Scan the text's code."""
        only_code = subject.surface == v1.SAFETY_SURFACE_CODE
        fenced = await offload(len(subject.text), fenced_blocks, subject.text)
        blocks = [block for block in fenced if block.code.strip()]
        if only_code and not blocks:
            blocks = [CodeBlock("python", subject.text, 0)]
        python, others = _sorted_by_language(blocks)
        scanned, left = _within(python, MAX_CHARS)
        if not scanned and not left and not others:
            return Judgement(score=0.0, score_kind=v1.SCORE_KIND_RULE, metadata={"blocks": len(blocks)})
        try:
            results = await self._scan([plain_source(block.code) for block in scanned])
        except ValueError as error:
            return Judgement(failure=str(error), metadata={"blocks": len(blocks)})
        return self._judgement(scanned, results, others=others, left=left, only_code=only_code)

    async def _scan(self, sources: Sequence[str]) -> list[Any]:
        """What the worker says about each source.

        Raises:
            ValueError: If it did not finish.
        """
        if not sources:
            return []
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(_WORKER),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env={},
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._seconds):
                answer, _ = await process.communicate(json.dumps(sources).encode())
        except TimeoutError:
            raise ValueError(f"the code was not scanned within {self._seconds:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise ValueError(f"the scanner ended with status {process.returncode}; the code may be made to exhaust it")
        results = json.loads(answer)
        assert isinstance(results, list)
        return results

    def _judgement(
        self,
        scanned: Sequence[CodeBlock],
        results: Sequence[Any],
        *,
        others: Sequence[CodeBlock],
        left: Sequence[CodeBlock],
        only_code: bool,
    ) -> Judgement:
        pairs = list(zip(scanned, results, strict=True))
        # A block without a language that is no Python is some other language.
        others = [*others, *(block for block, result in pairs if isinstance(result, str) and not block.language)]
        broken = [(block, result) for block, result in pairs if isinstance(result, str) and block.language]
        issues = [issue for block, result in pairs if not isinstance(result, str) for issue in _issues(block, result)]
        unread = [*left, *(others if only_code else ())]
        if only_code or self._on_unsupported != "allow":  # one junk line must not make a program pass unread
            unread += [block for block, _ in broken]
        known = {block.start for block in scanned}
        blocks = [*scanned, *left, *(block for block in others if block.start not in known)]
        coverage = 1 - sum(len(block.code) for block in unread) / max(1, sum(len(block.code) for block in blocks))
        scores: dict[str, float] = {}
        for issue in issues:
            scores[issue.test_id] = max(scores.get(issue.test_id, 0.0), issue.score)
        unsupported = _UNSUPPORTED_SCORE[self._on_unsupported] if others else 0.0
        if unsupported:
            scores[UNSUPPORTED] = unsupported
        nothing_read = only_code and coverage <= 0
        failure = "it is in a language that the scanner does not read"
        if broken or left:
            failure = broken[0][1] if broken else f"it is longer than {MAX_CHARS} characters"
        return Judgement(
            codes=tuple(scores),
            score=None if nothing_read and not issues else max(scores.values(), default=0.0),
            score_kind=v1.SCORE_KIND_RULE,
            category_scores=scores,
            spans=tuple(Span(start=issue.start, end=issue.end, code=issue.test_id) for issue in issues),
            coverage=max(0.0, coverage),
            failure=f"the code could not be read: {failure}" if nothing_read else "",
            metadata=_metadata(blocks, others, [str(result) for _, result in broken], issues),
        )


def plain_source(code: str) -> str:
    """Python as it would run: without NUL characters and the prompts of a console; lines keep their numbers."""
    lines = code.replace("\0", "").split("\n")
    if not any(line.lstrip().startswith(">>>") for line in lines):
        return "\n".join(lines)
    return "\n".join(_without_prompt(line) for line in lines)


def _without_prompt(line: str) -> str:
    """A console's line without its prompt; its output as a comment."""
    found = _PROMPT.match(line)
    return line[found.end() :] if found else f"# {line}"


def _sorted_by_language(blocks: Sequence[CodeBlock]) -> tuple[list[CodeBlock], list[CodeBlock]]:
    """Blocks that are or may be Python, and those in other programming languages."""
    code = [block for block in blocks if block.language not in NO_CODE]
    python = [block for block in code if _may_be_python(block)]
    return python, [block for block in code if not _may_be_python(block)]


def _may_be_python(block: CodeBlock) -> bool:
    return not block.language or block.language in PYTHON


def _within(blocks: Sequence[CodeBlock], limit: int) -> tuple[list[CodeBlock], list[CodeBlock]]:
    """The first blocks that are not longer together than the limit, and the rest."""
    taken = 0
    for index, block in enumerate(blocks):
        taken += len(block.code)
        if taken > limit:
            return list(blocks[:index]), list(blocks[index:])
    return list(blocks), []


def _issues(block: CodeBlock, found: Sequence[Mapping[str, Any]]) -> list[Issue]:
    starts = [*line_starts(block.code), len(block.code)]
    issues = []
    for entry in found:
        first, last = min(entry["first"], len(starts) - 1), min(entry["last"], len(starts) - 1)
        score = _SEVERITY.get(entry["severity"], 0.3) - _DISCOUNT.get(entry["confidence"], 0.2)
        issues.append(
            Issue(
                test_id=entry["test_id"],
                score=score,
                start=block.start + starts[first - 1],
                end=block.start + starts[last],
                facts={key: entry[key] for key in ("test_id", "severity", "confidence", "first")},
            )
        )
    return issues


def _language_name(block: CodeBlock) -> str:
    """What the fence says, where that looks like a language; anything may stand there."""
    name = block.language or "unnamed"
    return name if _LANGUAGE.fullmatch(name) else "other"


def _metadata(
    blocks: Sequence[CodeBlock], others: Sequence[CodeBlock], broken: Sequence[str], issues: Sequence[Issue]
) -> dict[str, Any]:
    languages = sorted({_language_name(block) for block in others})
    facts: dict[str, Any] = {
        "languages": languages[:_MAX_ISSUES],
        "syntax_errors": broken[:_MAX_ISSUES],
        "issues": [dict(issue.facts) for issue in issues[:_MAX_ISSUES]],
    }
    return {"blocks": len(blocks), **{key: value for key, value in facts.items() if value}}
