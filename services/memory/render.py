"""Rendering a caller's template in a process of its own: `python -m services.memory.render` does it, `render` asks it.

Jinja's sandbox keeps a template from Python's objects, but not from loops and strings without end; the process has
little time and memory, and is killed with them.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from stack_client.errors import InvalidArgumentError

SECONDS = 2
MEMORY_BYTES = 512 << 20
MOST_CHARACTERS = 100_000
START_SECONDS = 10.0


async def render(template: str, messages: Sequence[Mapping[str, Any]], *, field: str) -> str:
    """A template with the messages of a dialog.

    Args:
        template: Jinja; `messages` has objects with `role` and `content`.
        messages: Of the dialog.
        field: Of the request, for errors.

    Raises:
        InvalidArgumentError: If it is broken, needs more than two seconds or half a gigabyte, or makes more than
            100,000 characters.
    """
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.memory.render",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_SECONDS):
            task = json.dumps({"template": template, "messages": list(messages)}).encode()
            answer, _ = await process.communicate(task)
    except TimeoutError:
        answer = b""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if not answer:
        message = f"{field} cannot be rendered within {SECONDS} seconds and {MEMORY_BYTES >> 20} MiB; make it simpler"
        raise InvalidArgumentError(message, field=field)
    result = json.loads(answer)
    if "error" in result:
        raise InvalidArgumentError(f"{field} cannot be rendered: {result['error']}", field=field)
    return str(result["text"])


def main() -> None:
    """Read a task, render it, write the result; die when it costs too much."""
    import resource  # noqa: PLC0415 (in the child only)

    import jinja2  # noqa: PLC0415
    import jinja2.sandbox  # noqa: PLC0415

    task = json.load(sys.stdin)
    for what, limit in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        text = environment.from_string(task["template"]).render(messages=task["messages"])
        result = {"text": text}
        if len(text) > MOST_CHARACTERS:
            result = {"error": f"it makes {len(text)} characters; at most {MOST_CHARACTERS} are allowed"}
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        result = {"error": str(error)[:300]}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
