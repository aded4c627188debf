"""`stack audit`: check the log of safety verdicts, or write it out."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from stack_client.cli.mesh import load
from stack_client.cli.options import Subparsers, add_home, home_of, print_json
from stack_client.errors import FailedPreconditionError


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    parser = subparsers.add_parser("audit", help="check or write out the log of safety verdicts")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    verify = actions.add_parser("verify", help="follow the chain of hashes; exit code 1 names the first bad record")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(command=verify_log)
    export = actions.add_parser("export", help="write the records as JSON lines")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to (default: standard output)")
    export.set_defaults(command=export_log)
    for action in (verify, export):
        action.add_argument(
            "--log", type=Path, metavar="DIR", help="folder of the log (default: that of the stack's home)"
        )
        add_home(action)


def verify_log(arguments: argparse.Namespace) -> int:
    """Check the log; a running stack may go on writing meanwhile."""
    audit: Any = load("services.safety.audit")
    folder = _folder(arguments)
    try:
        report = audit.verify(folder)
    except audit.AuditError as error:
        raise FailedPreconditionError(str(error)) from error
    if arguments.json:
        print_json({"records": report.records, "head": report.head, "problem": report.problem, "log": str(folder)})
    elif report.problem:
        print(f"NOT in order after {report.records} records: {report.problem}")
    else:
        print(f"{report.records} records in order, head {report.head[:16]}")
    return 1 if report.problem else 0


def export_log(arguments: argparse.Namespace) -> int:
    """Write all records, oldest first."""
    audit: Any = load("services.safety.audit")
    try:
        if arguments.output is None:
            _write(audit.records(_folder(arguments)), sys.stdout)
        else:
            with arguments.output.open("w", encoding="utf-8") as file:
                _write(audit.records(_folder(arguments)), file)
    except audit.AuditError as error:
        raise FailedPreconditionError(str(error)) from error
    return 0


def _write(records: Any, file: Any) -> None:  # noqa: ANN401 (text streams)
    for record in records:
        file.write(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")


def _folder(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.log or home_of(arguments).path / "data" / "safety" / "audit"
    return folder
