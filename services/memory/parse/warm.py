"""One small document of each kind: parsed before the child gives up its rights, so that nothing is imported later."""

import io
from collections.abc import Iterator

import docx
import pptx


def samples() -> Iterator[tuple[str, bytes]]:
    """File names and contents."""
    word = io.BytesIO()
    document = docx.Document()
    document.add_heading("Heading", 1)
    document.add_paragraph("Item", style="List Bullet")
    document.add_table(rows=1, cols=1).cell(0, 0).text = "Cell"
    document.save(word)
    yield "sample.docx", word.getvalue()
    slides = io.BytesIO()
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Title"
    slide.placeholders[1].text = "Text"
    slide.notes_slide.notes_text_frame.text = "Notes"
    deck.save(slides)
    yield "sample.pptx", slides.getvalue()
    yield "sample.pdf", pdf(["Page"])
    yield "sample.html", b"<html><title>T</title><h1>H</h1><p>Text<table><tr><td>Cell</table></html>"
    yield "sample.md", b"# Title\n\nText"
    yield "sample.csv", b"name,age\nAda,36\nGrace,45\n"
    yield "sample.json", b'[{"name": "Ada", "tags": ["x"]}]'
    yield "sample.jsonl", b'{"name": "Ada"}\n{"name": "Grace"}'
    yield "sample.py", b"def main():\n    pass\n"
    yield "sample.txt", "Käse für alle, das schöne Wetter heute ist großartig".encode("cp1252")


def pdf(pages: list[str]) -> bytes:
    """A PDF with one line of Latin text a page (PDF 32000-1:2008, 7.5)."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(count))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {count}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, text in enumerate(pages):
        escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        stream = f"BT /F1 12 Tf 72 720 Td ({escaped}) Tj ET" if text else ""
        content = 5 + 2 * number
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>/Contents {content} 0 R>>"
        )
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
    result, places = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        places.append(len(result))
        result += f"{number} 0 obj\n{item}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    trailer = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<</Size {len(objects) + 1}/Root 1 0 R>>"
    )
    return result + f"{trailer}\nstartxref\n{len(result)}\n%%EOF\n".encode()
