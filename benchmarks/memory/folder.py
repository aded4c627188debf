"""End to end: a folder of 100 mixed files into a bank of a running stack; documents/s, and where the time goes."""

import csv
import io
import json
import re
import tempfile
import time
import urllib.request
from pathlib import Path

import docx
import pptx

from benchmarks.measure import report
from benchmarks.memory.stack import running
from services.memory.parse.warm import pdf
from stack_client import Memory, SyncStackClient

FILES = 100
SENTENCES = (
    "The committee met on the {n}th day and agreed on plan {n}.",
    "Pump {n} moves {n} litres a minute at a pressure of {n} bar.",
    "Visitors of building {n} ask for directions at desk {n}.",
    "The bridge over river {n} was finished in the year {n}.",
)
METRICS_PORT = 29464


def main() -> None:
    """Make the folder, load it, load it again unchanged and with one file changed."""
    telemetry = {"metrics_port": METRICS_PORT}
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        runtime = {"log_level": "WARNING", "telemetry": telemetry}
        with running(runtime=runtime) as client:
            memory = Memory(folder, bank="folder", client=client)
            first = _timed(memory)
            report(
                "memory folder: documents loaded", FILES / first, "per second", note=f"{FILES} files in {first:.1f} s"
            )
            _stages()
            report("memory folder: the same folder again", _timed(memory), "s")
            (Path(folder) / "000.md").write_text("# Changed\n\nOne file is another one now.\n")
            report("memory folder: with one file changed", _timed(memory), "s")
            _check(client)


def _timed(memory: Memory) -> float:
    begun = time.monotonic()
    synced = memory.sync()
    assert not synced.failures, synced.failures
    return time.monotonic() - begun


def _stages() -> None:
    """Seconds of each stage, summed over documents that were handled beside each other."""
    for port in range(METRICS_PORT, METRICS_PORT + 4):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            continue
        for stage, seconds in re.findall(r'^memory_ingest_seconds_sum\{stage="(\w+)"\} (\S+)', text, re.MULTILINE):
            report(f"memory folder: time in {stage}, over all documents", float(seconds), "s")


def _check(client: SyncStackClient) -> None:
    hits = client.memory.search("folder", "How much does pump 33 move?", k=5)
    assert any("Pump 33" in hit.text for hit in hits), hits


def make_folder(folder: Path) -> None:
    """100 files of eight kinds, one to four pages of text each."""
    makers = (_markdown, _text, _html, _csv, _json, _code, _docx, _pdf, _pptx, _markdown)
    for number in range(FILES):
        name, data = makers[number % len(makers)](number)
        (folder / f"{number:03d}.{name}").write_bytes(data)


def _sentences(number: int, count: int = 40) -> list[str]:
    return [SENTENCES[index % len(SENTENCES)].format(n=number + index * 100) for index in range(count)]


def _markdown(number: int) -> tuple[str, bytes]:
    parts = (f"# Part {part}\n\n{' '.join(_sentences(number + part))}\n" for part in range(3))
    return "md", "\n".join(parts).encode()


def _text(number: int) -> tuple[str, bytes]:
    return "txt", "\n\n".join(_sentences(number, 80)).encode()


def _html(number: int) -> tuple[str, bytes]:
    body = "".join(f"<h2>Part</h2><p>{sentence}</p>" for sentence in _sentences(number, 60))
    return "html", f"<html><head><title>Page {number}</title></head><body>{body}</body></html>".encode()


def _csv(number: int) -> tuple[str, bytes]:
    out = io.StringIO()
    csv.writer(out).writerows([["n", "what"], *([index, text] for index, text in enumerate(_sentences(number, 60)))])
    return "csv", out.getvalue().encode()


def _json(number: int) -> tuple[str, bytes]:
    return "json", json.dumps({"number": number, "facts": _sentences(number, 60)}).encode()


def _code(number: int) -> tuple[str, bytes]:
    functions = (
        f'def f{index}():\n    """{text}"""\n    return {index}\n' for index, text in enumerate(_sentences(number))
    )
    return "py", "\n\n".join(functions).encode()


def _docx(number: int) -> tuple[str, bytes]:
    made, out = docx.Document(), io.BytesIO()
    made.add_heading(f"Document {number}")
    for text in _sentences(number, 60):
        made.add_paragraph(text)
    made.save(out)
    return "docx", out.getvalue()


def _pdf(number: int) -> tuple[str, bytes]:
    texts = _sentences(number, 24)
    return "pdf", pdf([" ".join(texts[start : start + 6]) for start in range(0, len(texts), 6)])


def _pptx(number: int) -> tuple[str, bytes]:
    made, out = pptx.Presentation(), io.BytesIO()
    for text in _sentences(number, 12):
        slide = made.slides.add_slide(made.slide_layouts[1])
        slide.shapes.title.text = f"Slide of {number}"
        slide.placeholders[1].text = text
    made.save(out)
    return "pptx", out.getvalue()
