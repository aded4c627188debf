"""Documents of all kinds become text; the kind is found by content."""

import io
import posixpath
import re
import zipfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import docx
import pptx
import pytest

from services.memory.parse.extract import Limits, cause
from services.memory.parse.pool import ParserPool
from services.memory.parse.warm import pdf
from services.memory.text import Parsed
from stack_client.errors import FailedPreconditionError, InvalidArgumentError

PAGE = """<!DOCTYPE html><html><head><title>A  title</title><style>p{}</style><script>var x = "hidden"</script></head>
<body><nav>Menu</nav><h1>Head <b>line</b></h1><p>One   paragraph with <a href="/x">a link</a>,<br>two lines.</p>
<ul><li>first<ul><li>inner</li></ul></li><li>second</li></ul><ol><li>one</li><li>two</li></ol>
<table><tr><th>Name</th><th>Age</th></tr><tr><td>Ada</td><td>36 | 37</td></tr></table>
<pre>def f():
    return 1</pre><p hidden>unseen</p><!-- a comment --><footer>Imprint</footer></body></html>"""


@pytest.fixture(scope="session")
async def parser() -> AsyncIterator[ParserPool]:
    async with ParserPool(children=1, limits=Limits(seconds=30)) as pool:
        yield pool


async def read(parser: ParserPool, data: bytes | str, *, name: str = "", mime_type: str = "") -> Parsed:
    return await parser.parse(data.encode() if isinstance(data, str) else data, name=name, mime_type=mime_type)


def word() -> bytes:
    document = docx.Document()
    document.core_properties.title = "The title"
    document.add_heading("Chapter", 1)
    document.add_heading("Section", 2)
    document.add_paragraph("A paragraph.")
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for place, text in enumerate(["Name", "Age", "Ada", "36"]):
        table.cell(place // 2, place % 2).text = text
    document.add_paragraph("The end.")
    return _saved(document)


def slides() -> bytes:
    deck = pptx.Presentation()
    for number in (1, 2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = "one\ntwo"
    slide.notes_slide.notes_text_frame.text = "Say this."
    return _saved(deck)


def _saved(document: Any) -> bytes:
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def _only(data: bytes, kept: Callable[[str], bool]) -> bytes:
    """A zipped document with some of its parts, and without relations to the others."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
        names = {name for name in old.namelist() if kept(name)}
        for name in names:
            content = old.read(name)
            if name.endswith(".rels"):
                folder = name.rpartition("_rels/")[0]
                for relation in re.findall(rb"<Relationship [^>]*>", content):
                    to = re.search(r'Target="([^"]*)"', relation.decode())
                    if to and posixpath.normpath(posixpath.join(folder, to[1])).lstrip("/") not in names:
                        content = content.replace(relation, b"")
            new.writestr(name, content)
    return target.getvalue()


async def test_a_pdf_has_pages(parser: ParserPool) -> None:
    parsed = await read(parser, pdf(["First page.", "Second page.", ""]))
    assert parsed.text == "First page.\n\nSecond page.\n\n"
    assert list(parsed.pages) == [0, 13, 27]
    assert parsed.mime_type == "application/pdf"


async def test_a_word_document_becomes_markdown(parser: ParserPool) -> None:
    parsed = await read(parser, word())
    assert parsed.text.split("\n\n") == [
        "# Chapter", "## Section", "A paragraph.", "- first\n- second", "| Name | Age |\n| --- | --- |\n| Ada | 36 |",
        "The end.",
    ]  # fmt: skip
    assert (parsed.structure, parsed.title) == ("markdown", "The title")


async def test_office_documents_without_their_optional_parts_are_read(parser: ParserPool) -> None:
    kept = {"[Content_Types].xml", "_rels/.rels", "word/document.xml", "word/_rels/document.xml.rels"}
    for parts in (kept, kept - {"word/_rels/document.xml.rels"}):
        parsed = await read(parser, _only(word(), parts.__contains__))
        assert parsed.text.startswith("# Chapter\n\n## Section\n\nA paragraph.\n\n- first\n- second\n\n")
    small = _only(slides(), lambda part: not part.startswith(("docProps/", "ppt/printer", "ppt/theme/", "ppt/notes")))
    assert (await read(parser, small)).text.startswith("## Slide 1\n\n- one")


async def test_what_a_reader_says_of_its_failure_names_no_path_of_the_server() -> None:
    assert cause(FileNotFoundError(2, "No such file", docx.__file__)) == "FileNotFoundError: No such file"
    assert cause(ValueError(f"bad {docx.__file__!r}, part /word/x.xml")) == "ValueError: bad 'a file', part /word/x.xml"


async def test_slides_are_pages_with_their_notes(parser: ParserPool) -> None:
    parsed = await read(parser, slides())
    first, second = parsed.text[: parsed.pages[1]], parsed.text[parsed.pages[1] :]
    assert first.strip() == "## Slide 1\n\n- one\n- two"
    assert second == "## Slide 2\n\n- one\n- two\n\nNotes: Say this."


async def test_a_page_becomes_what_a_reader_sees(parser: ParserPool) -> None:
    parsed = await read(parser, PAGE)
    assert parsed.text.split("\n\n") == [
        "# A title", "# Head line", "One paragraph with a link,\ntwo lines.",
        "- first\n  - inner\n- second", "1. one\n2. two",
        "| Name | Age |\n| --- | --- |\n| Ada | 36 \\| 37 |", "```\ndef f():\n    return 1\n```",
    ]  # fmt: skip
    assert (parsed.title, parsed.structure, parsed.mime_type) == ("A title", "markdown", "text/html")


async def test_the_title_of_a_page_is_its_first_heading_unless_the_page_begins_with_it(parser: ParserPool) -> None:
    for body, expected in [
        ("<p>Text</p>", "# Annual report\n\nText"),
        ("<h1>Annual Report</h1><p>Text</p>", "# Annual Report\n\nText"),
        ("<p>Annual report</p><p>Text</p>", "Annual report\n\nText"),
    ]:
        page = f"<html><head><title>Annual\n report</title></head><body>{body}</body></html>"
        assert (await read(parser, page)).text == expected


async def test_what_a_page_hides_is_left_out(parser: ParserPool) -> None:
    hidden = [
        'style="color: red; display:none"', 'style="DISPLAY : NONE !important"', "hidden", 'aria-hidden="true"',
        'style="visibility:hidden"', 'hidden="until-found"',
    ]  # fmt: skip
    inner = "".join(f"<b {one}>secret</b>" for one in hidden)
    blocks = "".join(f"<div {one}>secret<p>secret</p></div>" for one in hidden)
    seen = '<p style="display:block" aria-hidden="false">Seen</p>'
    page = f"<html><body><h2>Head{inner}</h2>{blocks}<table><tr><td>Cell{inner}</td></tr></table>{seen}</body></html>"
    assert (await read(parser, page)).text == "## Head\n\n| Cell |\n| --- |\n\nSeen"


async def test_a_page_that_is_hidden_as_a_whole_until_its_scripts_ran_is_read(parser: ParserPool) -> None:
    page = '<html><body style="visibility: hidden"><p>Text</p></body></html>'
    assert (await read(parser, page)).text == "Text"


async def test_rows_and_records_name_their_values(parser: ParserPool) -> None:
    expected = "name: Ada\nborn: 1815\n\nname: Grace, B.\nborn: 1906"
    for data, name in [
        ('name,born\nAda,1815\n"Grace, B.",1906\n', "people.csv"),
        ("name;born\r\nAda;1815\r\nGrace, B.;1906\r\n", "people.csv"),
        ("name\tborn\nAda\t1815\nGrace, B.\t1906", "people.tsv"),
        ('[{"name": "Ada", "born": 1815}, {"name": "Grace, B.", "born": 1906, "x": null}]', "people"),
        ('{"name": "Ada", "born": 1815}\n\n{"name": "Grace, B.", "born": 1906}\n', "people.jsonl"),
    ]:
        parsed = await read(parser, data, name=name)
        assert (parsed.text, parsed.structure) == (expected, "table")
    deep = await read(parser, '{"a": {"b": [1, {"c": true}]}, "d": ["x", "y"]}')
    assert deep.text == "a.b[0]: 1\na.b[1].c: true\nd: x, y"


@pytest.mark.parametrize(
    ("name", "mime_type", "structure", "language"),
    [
        ("main.py", "", "code", "python"),
        ("MAIN.RS", "", "code", "rust"),
        ("main", "text/x-python", "code", ""),
        ("notes.md", "text/plain", "markdown", ""),
        ("notes", "text/markdown; charset=utf-8", "markdown", ""),
        ("notes.txt", "text/markdown", "markdown", ""),
        ("notes", "", "prose", ""),
        ("picture.png", "image/png", "prose", ""),
        ("file.pdf", "application/pdf", "prose", ""),
    ],
)
async def test_name_and_declared_type_tell_kinds_of_text_apart_and_nothing_else(
    parser: ParserPool, name: str, mime_type: str, structure: str, language: str
) -> None:
    parsed = await read(parser, "def main():\n    pass\n", name=name, mime_type=mime_type)
    assert (parsed.structure, parsed.language) == (structure, language)


async def test_the_content_tells_all_other_kinds_whatever_the_name_says(parser: ParserPool) -> None:
    for name in ("a.txt", "a.csv", "a.docx", "a"):
        assert (await read(parser, pdf(["Text"]), name=name, mime_type="text/plain")).mime_type == "application/pdf"
        assert (await read(parser, word(), name=name)).mime_type.endswith("wordprocessingml.document")
    assert (await read(parser, PAGE, name="page.txt")).mime_type == "text/html"
    assert (await read(parser, '{"a": 1}', name="a.txt")).mime_type == "application/json"
    assert (await read(parser, "[link](x) is Markdown", name="a")).mime_type == "text/plain"
    assert (await read(parser, "#!/usr/bin/env python3\nprint()", name="script")).language == "python"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1"])
async def test_the_encoding_of_a_text_is_found(parser: ParserPool, encoding: str) -> None:
    text = "Übermut tut selten gut, sagte die Großmutter; später wärmte sie Käsespätzle für alle Gäste auf.\n" * 3
    data = text.encode(encoding)
    if encoding == "utf-16-le":
        data = b"\xff\xfe" + data
    assert (await read(parser, data, name="a.txt")).text == text


@pytest.mark.parametrize(
    "text",
    ["Größe und Übermut, naïve café", "Größe", "café", "„Zitat“ – naïve", "Price: 5 €", "José está aquí. ¿Qué?",
     "São João, ações, você", "blåbærgrød på øen", "£5 für alle", "perché la città è più bella",
     "cœur et sœur, où ça?"],
)  # fmt: skip
async def test_a_few_words_of_western_languages_are_read_as_such(parser: ParserPool, text: str) -> None:
    assert (await read(parser, text.encode("cp1252"), name="a.txt")).text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Zażółć gęślą jaźń", "cp1250"), ("Příliš žluťoučký kůň úpěl", "cp1250"),
     ("Chcę być w domu, kiedy wrócą moje siostry", "cp1250"),
     ("Привет мир, как дела", "cp1251"), ("Árvíztűrő tükörfúrógép", "cp1250"),
     ("Dobrý den, česká", "cp1250")],
)  # fmt: skip
async def test_a_few_words_of_other_languages_are_not_taken_for_western_ones(
    parser: ParserPool, text: str, encoding: str
) -> None:
    assert (await read(parser, text.encode(encoding), name="a.txt")).text == text


async def test_a_page_may_declare_its_encoding(parser: ParserPool) -> None:
    page = '<html><head><meta charset="shift_jis"></head><body><p>日本語の文章です。</p></body></html>'
    assert (await read(parser, page.encode("shift_jis"))).text == "日本語の文章です。"
    plain = "<html><body><p>日本語</p></body></html>".encode("euc-jp")
    assert (await read(parser, plain, mime_type="text/html; charset=euc-jp")).text == "日本語"


async def test_line_ends_become_one_kind(parser: ParserPool) -> None:
    assert (await read(parser, "a\r\nb\rc\n", name="a.txt")).text == "a\nb\nc\n"


def test_the_optional_parser_names_its_package() -> None:
    from services.memory.parse.pool import check_parser  # noqa: PLC0415

    with pytest.raises(FailedPreconditionError, match="pip install docling"):
        check_parser("docling")
    with pytest.raises(InvalidArgumentError, match="builtin or docling"):
        check_parser("magic")
