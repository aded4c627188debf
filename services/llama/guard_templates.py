"""Which Llama Guard a chat template belongs to, told by its structure and never by a model's name.

Source: the model cards of Llama Guard 1 to 4: the hazard codes that each version was trained with, and the tokens that
frame its prompt. The same code means different hazards in versions 2 and 3, so a wrong guess would be worse than none.
"""

import re

from jinja2 import TemplateError

from services.llama.chat_template import template_environment
from services.llama.template_ast import wants_parts

_CODE = re.compile(r"(?:(?<![A-Za-z0-9])|(?<=\\n))([OS])([1-9][0-9]?)[\"']?\s*:")
"""A hazard code before its name: `S1: ...` as text or behind a written line end, or the key of a map, `"S1": ...`."""
_INSTRUCTION, _LLAMA3, _LLAMA4 = "[INST]", "<|start_header_id|>", "<|header_start|>"
_IMAGE = re.compile(r"<\|image\|>|[\"']image[\"']")


def recognise(template: str) -> str | None:
    """The name of the Llama Guard whose template this is; None for any other template.

    One of `llama-guard-1`, `llama-guard-2`, `llama-guard-3-8b`, `llama-guard-3-1b`, `llama-guard-3-11b-vision` and
    `llama-guard-4`.
    """
    if not re.search(r"\bsafe\b", template) or not re.search(r"\bunsafe\b", template):
        return None
    codes = {(letter, int(number)) for letter, number in _CODE.findall(template)}
    letters = {letter for letter, _ in codes}
    count = len(codes)
    if len(letters) != 1 or {number for _, number in codes} != set(range(1, count + 1)):
        return None
    [letter] = letters
    if _LLAMA4 in template:
        return "llama-guard-4" if letter == "S" and count in {13, 14} else None
    if _LLAMA3 in template:
        return _version_3(template, count) if letter == "S" else None
    if _INSTRUCTION in template:
        return {("O", 6): "llama-guard-1", ("S", 11): "llama-guard-2"}.get((letter, count))
    return None


def _version_3(template: str, count: int) -> str | None:
    """Of the three models of version 3, the 8B has one code more and takes strings."""
    try:
        parts = wants_parts(template_environment().parse(template))
    except TemplateError:
        return None
    if count == 14 and not parts:
        return "llama-guard-3-8b"
    if count == 13 and parts:
        return "llama-guard-3-11b-vision" if _IMAGE.search(template) else "llama-guard-3-1b"
    return None
