"""Prompts: their rows, and their text as instructions of a response."""

import re
from typing import Any

import sqlalchemy as sa

from llamastack import v1
from services.agents import rows
from services.agents.tables import prompt_versions, prompts
from stack_client.errors import InvalidArgumentError, NotFoundError, UnsupportedError

_SLOT = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def get(connection: sa.Connection, prompt_id: str, version: int | None, tenant: str) -> v1.Prompt:
    """One version of a prompt, the default one where none is named; raises NotFoundError."""
    row = row_of(connection, prompt_id, tenant)
    wanted = row.chosen if version is None else version
    query = sa.select(prompt_versions.c.message).where(
        prompt_versions.c.prompt_id == prompt_id, prompt_versions.c.version == wanted
    )
    message = connection.execute(query).scalar()
    if message is None:
        raise NotFoundError(f"prompt {prompt_id!r} has no version {version}; its latest is {row.latest}")
    prompt = v1.Prompt.FromString(message)
    prompt.is_default = wanted == row.chosen
    return prompt


def instructions_of(connection: sa.Connection, reference: v1.PromptReference, tenant: str) -> str:
    """The text of a prompt with its slots filled.

    Raises:
        NotFoundError: If there is no such prompt or version.
        InvalidArgumentError: If a slot has no value, or a value no slot.
        UnsupportedError: If a value is no text.
    """
    if reference.version and not reference.version.isdecimal():
        message = f"prompt.version is {reference.version!r}; give a number as text"
        raise InvalidArgumentError(message, field="prompt.version")
    prompt = get(connection, reference.id, int(reference.version) if reference.version else None, tenant)
    values = {}
    for name, part in reference.variables.items():
        field = f"prompt.variables[{name!r}]"
        if name not in prompt.variables:
            known = ", ".join(prompt.variables) or "none"
            raise InvalidArgumentError(f"{field}: the prompt has no such variable; it has: {known}", field=field)
        if part.WhichOneof("part") != "input_text":
            raise UnsupportedError(f"{field}: only texts fill slots; give input_text", field=field)
        values[name] = part.input_text.text
    missing = sorted(set(_SLOT.findall(prompt.prompt)) - set(values))
    if missing:
        field = f"prompt.variables[{missing[0]!r}]"
        raise InvalidArgumentError(f"{field} is missing", reason="MISSING_FIELD", field=field)
    return _SLOT.sub(lambda match: values[match[1]], prompt.prompt)


def check_slots(text: str, variables: list[str]) -> None:
    """Refuse a text whose slots are not among the variables.

    Raises:
        InvalidArgumentError: Naming the first.
    """
    for name in variables:
        if not _NAME.fullmatch(name):
            message = f"variables: {name!r} is no name; use letters, digits and '_'"
            raise InvalidArgumentError(message, field="variables")
    if len(set(variables)) != len(variables):
        raise InvalidArgumentError("variables names one twice", field="variables")
    for name in re.findall(r"\{\{(.*?)\}\}", text):
        if name.strip() not in variables:
            message = f"prompt: the slot {name.strip()!r} is not among variables; add it there"
            raise InvalidArgumentError(message, field="prompt")


def row_of(connection: sa.Connection, prompt_id: str, tenant: str, *, lock: bool = False) -> Any:  # noqa: ANN401
    """The row of a prompt; raises NotFoundError."""
    query = sa.select(prompts).where(prompts.c.prompt_id == prompt_id, prompts.c.tenant == tenant)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise rows.not_found("prompt", prompt_id)
    return row


def add_version(connection: sa.Connection, prompt: v1.Prompt) -> None:
    """Store a version."""
    row = {"prompt_id": prompt.prompt_id, "version": prompt.version, "message": prompt.SerializeToString()}
    connection.execute(sa.insert(prompt_versions), row)
