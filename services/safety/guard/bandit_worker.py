"""Runs bandit over sources from stdin: a script for a process of its own, for hostile code can crash a parser.

Reads a JSON list of sources, writes a JSON list with one entry per source: a list of findings (`test_id`, `severity`,
`confidence`, `first`, `last` line from 1), or a string that says why it could not be scanned. Neither quotes the
source, as bandit's and Python's own messages do: it may hold secrets, and this goes to logs.
"""

import ast
import codecs
import contextlib
import io
import json
import logging
import resource
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import Any

from bandit.core import config, manager

MEMORY = 1024 * 1024 * 1024
"""Bytes of address space; a scan of the largest source allowed takes about a tenth."""
CPU_SECONDS = 20


def scan(source: str, folder: Path) -> list[dict[str, Any]] | str:
    """The findings in one source, or why there are none."""
    source = textwrap.dedent(source)  # a block inside a list is indented; lines stay where they are
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        return f"{type(error).__name__} in line {line}" if line else type(error).__name__
    file = folder / "source.py"
    # With a byte order mark no comment can declare another encoding, in which the code would be a different one.
    file.write_bytes(codecs.BOM_UTF8 + source.encode())
    # `# nosec` would let whoever wrote the code decide about its own judgement.
    scanner = manager.BanditManager(config.BanditConfig(), "file", ignore_nosec=True)
    scanner.discover_files([str(file)])
    scanner.run_tests()
    if scanner.skipped:
        return "bandit could not read it"
    return [
        {
            "test_id": issue.test_id,
            "severity": issue.severity,
            "confidence": issue.confidence,
            "first": min(issue.linerange or [issue.lineno]),
            "last": max(issue.linerange or [issue.lineno]),
        }
        for issue in scanner.get_issue_list()
    ]


def main() -> None:
    """Scan what stdin holds."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # of the code that is read
    sources = json.loads(sys.stdin.buffer.read())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        found = [scan(source, Path(folder)) for source in sources]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
