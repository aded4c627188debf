"""`stack memory`: banks and what is in them."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Self

from google.protobuf import json_format
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llamastack import v1
from stack_client.cli.connection import add_target, connected
from stack_client.cli.options import IntermixedParser, Subparsers, json_object, on_terminal, print_json
from stack_client.content import plain, struct
from stack_client.errors import InvalidArgumentError
from stack_client.knowledge import find_files, follow_ingestion, ingest_files
from stack_client.memory import KINDS, MODES, RANKERS, MemoryHit
from stack_client.memory_entries import value_of
from stack_client.portal import SyncStackClient, portal

NOT_ALL = 3
"""Exit code of `stack memory ingest` when a document could not be loaded."""


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    parser = subparsers.add_parser("memory", help="make, fill and search memory banks", parents=[_common()])
    parser.set_defaults(command=list_memory, bank=None)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=IntermixedParser)
    common = _common(argument_default=argparse.SUPPRESS)
    _add_create(actions, common)
    _add_ingest(actions, common)
    _add_search(actions, common)
    listing = actions.add_parser("list", help="list the banks (default), or the documents of one", parents=[common])
    listing.add_argument("bank", nargs="?", metavar="BANK")
    listing.set_defaults(command=list_memory)
    show = actions.add_parser("show", help="show a bank, or the text of one of its documents", parents=[common])
    show.add_argument("bank", metavar="BANK")
    show.add_argument("document", nargs="?", metavar="DOCUMENT", help="a document, key or entity in it")
    show.set_defaults(command=show_memory)
    delete = actions.add_parser("delete", help="delete documents, or a bank with everything in it", parents=[common])
    delete.add_argument("bank", metavar="BANK")
    delete.add_argument("documents", nargs="*", metavar="DOCUMENT")
    delete.add_argument("--where", type=json_object, metavar="JSON", help="only documents whose metadata match")
    delete.set_defaults(command=delete_memory)


def _add_create(actions: Any, common: IntermixedParser) -> None:  # noqa: ANN401 (argparse's)
    create = actions.add_parser("create", help="make a bank", parents=[common])
    create.add_argument("bank", metavar="BANK")
    create.add_argument("--kind", choices=KINDS, default="vector", help="what it holds (default: vector)")
    create.add_argument("--model", default="", metavar="NAME", help="embedding model of a vector bank")
    create.add_argument("--chunk-size", type=int, default=0, metavar="TOKENS", help="of a vector bank")
    create.add_argument("--overlap", type=int, metavar="TOKENS", help="of a vector bank")
    create.add_argument("--language", default="", metavar="TAG", help="of a keyword bank, such as de (default: en)")
    create.add_argument("--fields", type=json_object, metavar="JSON", help='types of metadata, {"year": "number"}')
    create.add_argument("--ttl", type=int, metavar="SECONDS", help="life of entries in a key-value bank")
    create.add_argument("--provider", default="", metavar="INDEX", help="scan, pgvector, fts5, ... (default: chosen)")
    create.set_defaults(command=create_bank)


def _add_ingest(actions: Any, common: IntermixedParser) -> None:  # noqa: ANN401
    ingest = actions.add_parser(
        "ingest", help=f"load files and URLs into a bank; exit code {NOT_ALL} when some failed", parents=[common]
    )
    ingest.add_argument("bank", metavar="BANK", help="made as a vector bank when it is not there")
    ingest.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, patterns, URLs")
    ingest.add_argument("--metadata", type=json_object, metavar="JSON", help="given to every document")
    ingest.set_defaults(command=ingest_sources)


def _add_search(actions: Any, common: IntermixedParser) -> None:  # noqa: ANN401
    search = actions.add_parser("search", help="find passages", parents=[common])
    search.add_argument("bank", metavar="BANK")
    search.add_argument("query", nargs="+", metavar="QUESTION", help="in any words")
    search.add_argument("-k", type=int, default=5, metavar="N", help="passages at most (default: 5)")
    search.add_argument("--mode", choices=sorted(filter(None, MODES)), default="", help="default: hybrid")
    search.add_argument("--ranker", choices=RANKERS, default="rrf", help="how hybrid joins words and vectors")
    search.add_argument("--where", type=json_object, metavar="JSON", help='a filter, {"year": {"gte": 1990}}')
    search.add_argument("--explain", action="store_true", help="say what words and vectors think of each passage")
    search.set_defaults(command=search_bank)


def list_memory(arguments: argparse.Namespace) -> int:
    """List banks, or what is in one."""
    with connected(arguments) as client:
        if arguments.bank:
            return _list_contents(client, arguments)
        banks: list[v1.MemoryBank] = client.memory.list()
    rows = [
        (bank.identifier, _kind(bank), f"{bank.entry_count:.0f}", bank.params.vector.embedding_model, bank.provider_id)
        for bank in banks
    ]
    _print_rows(arguments, ("bank", "kind", "entries", "model", "index"), rows)
    return 0


def create_bank(arguments: argparse.Namespace) -> int:
    """Make a bank."""
    with connected(arguments) as client:
        bank: v1.MemoryBank = client.memory.create(
            arguments.bank,
            arguments.kind,
            embedding_model=arguments.model,
            chunk_size=arguments.chunk_size,
            overlap=arguments.overlap,
            fields=arguments.fields,
            language=arguments.language,
            default_ttl_seconds=arguments.ttl,
            provider_id=arguments.provider,
        )
    if arguments.json:
        print_json(_facts(bank))
    else:
        model = bank.params.vector.embedding_model
        print(f"{bank.identifier} is a {_kind(bank)} bank" + (f", embedded by {model}" if model else ""))
    return 0


def ingest_sources(arguments: argparse.Namespace) -> int:
    """Load files and URLs; shows progress on a terminal."""
    urls = [source for source in arguments.sources if "://" in source or source.startswith("data:")]
    paths = [source for source in arguments.sources if source not in urls]
    files = find_files(paths) if paths else {}
    if paths and not files:
        raise InvalidArgumentError(f"no file matches {', '.join(paths)}; see that the path is right", field="sources")
    with connected(arguments) as client, _Progress(arguments, total=len(files) + len(urls)) as progress:
        if arguments.bank not in {bank.identifier for bank in client.memory.list()}:
            client.memory.create(arguments.bank)
        failures: dict[str, str] = {}
        if files:
            work = ingest_files(
                client.client, arguments.bank, files, metadata=arguments.metadata, on_event=progress.see
            )
            failures.update(portal().run(work))
        if urls:
            failures.update(_ingest_urls(client, arguments, urls, progress))
    _report(arguments, progress, failures)
    return NOT_ALL if failures else 0


def search_bank(arguments: argparse.Namespace) -> int:
    """Find passages."""
    question = " ".join(arguments.query)
    with connected(arguments) as client:
        hits: list[MemoryHit] = client.memory.search(
            arguments.bank,
            question,
            mode=arguments.mode,
            k=arguments.k,
            where=arguments.where,
            ranker=arguments.ranker,
            highlight=True,
        )
        why: dict[str, v1.ChunkExplanation] = {}
        if arguments.explain and hits:
            answer = client.memory.explain(
                arguments.bank, question, *(hit.chunk_id for hit in hits), where=arguments.where
            )
            why = {one.chunk_id: one for one in answer.explanations}
    if arguments.json:
        print_json([_hit_facts(hit, why.get(hit.chunk_id)) for hit in hits])
        return 0
    if not hits:
        print("nothing was found", file=sys.stderr)
    console = Console(highlight=False, soft_wrap=not on_terminal())
    for place, hit in enumerate(hits, 1):
        console.print(_rendered(hit, place))
        for leg in why[hit.chunk_id].legs if hit.chunk_id in why else ():
            console.print(Text(f"   {_leg(leg)}", style="dim"))
        console.print()
    return 0


def show_memory(arguments: argparse.Namespace) -> int:
    """Show a bank or something in it."""
    with connected(arguments) as client:
        bank: v1.MemoryBank = client.memory.get(arguments.bank)
        if not arguments.document:
            print_json(_facts(bank))
            return 0
        kind = _kind(bank)
        if kind == "keyvalue":
            entries = client.memory.entries(arguments.bank, [arguments.document])
            if not entries:
                raise InvalidArgumentError(f"bank {arguments.bank!r} has no key {arguments.document!r}")
            value = value_of(entries[0])
            if isinstance(value, bytes):
                sys.stdout.buffer.write(value)
            else:
                print_json(value)
        elif kind == "graph":
            print_json(_message(client.memory.subgraph(arguments.bank, arguments.document, max_hops=1)))
        else:
            text = client.memory.document(arguments.bank, arguments.document)
            if arguments.json:
                print_json({"document": arguments.document, "text": text})
            else:
                print(text)
    return 0


def delete_memory(arguments: argparse.Namespace) -> int:
    """Delete documents or a bank."""
    with connected(arguments) as client:
        if not arguments.documents and not arguments.where:
            client.memory.delete(arguments.bank)
            said = {"deleted_bank": arguments.bank}
            line = f"{arguments.bank} is gone"
        elif _kind(client.memory.get(arguments.bank)) == "keyvalue":
            count = sum(client.memory.remove(arguments.bank, key) for key in arguments.documents)
            said, line = {"deleted": count}, f"{count} keys are gone"
        else:
            count = client.memory.delete_documents(arguments.bank, *arguments.documents, where=arguments.where)
            said, line = {"deleted": count}, f"{count} documents are gone"
    if arguments.json:
        print_json(said)
    else:
        print(line)
    return 0


class _Progress:
    """A bar on a terminal; elsewhere nothing until the end."""

    def __init__(self, arguments: argparse.Namespace, *, total: int) -> None:
        self.loaded = self.unchanged = self.chunks = 0
        shown = on_terminal() and not arguments.json
        columns = (
            TextColumn("loading"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not shown)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def see(self, event: v1.WatchIngestionJobResponse) -> None:
        """Take in an event of a job."""
        if not event.HasField("document"):
            return
        document = event.document
        if not document.HasField("error"):
            self.loaded += 1
            self.unchanged += document.unchanged
            self.chunks += document.chunks
        self._bar.update(self._task, advance=1, description=document.document_id)


def _ingest_urls(
    client: SyncStackClient, arguments: argparse.Namespace, urls: Sequence[str], progress: _Progress
) -> dict[str, str]:
    source = v1.IngestionUrls(urls=[v1.URL(uri=url) for url in urls], metadata=struct(arguments.metadata))
    job = client.memory.start_ingestion(v1.CreateIngestionJobRequest(bank_id=arguments.bank, urls=source))
    return portal().run(follow_ingestion(client.client, job.job_id, on_event=progress.see))


def _report(arguments: argparse.Namespace, progress: _Progress, failures: dict[str, str]) -> None:
    if arguments.json:
        facts = {"loaded": progress.loaded, "unchanged": progress.unchanged, "chunks": progress.chunks}
        print_json({"bank": arguments.bank, **facts, "failures": failures})
        return
    print(
        f"{progress.loaded} documents in {arguments.bank}, {progress.unchanged} of them unchanged; "
        f"{progress.chunks} chunks written"
    )
    for name, why in failures.items():
        print(f"{name}: {why}", file=sys.stderr)


def _list_contents(client: SyncStackClient, arguments: argparse.Namespace) -> int:
    kind = _kind(client.memory.get(arguments.bank))
    if kind == "keyvalue":
        entries = [
            (entry.key, str(entry.version), _short(value_of(entry))) for entry in client.memory.scan(arguments.bank)
        ]
        _print_rows(arguments, ("key", "version", "value"), entries)
    elif kind == "graph":
        message = (
            f"bank {arguments.bank!r} is a graph; see an entity of it with `stack memory show {arguments.bank} ENTITY`"
        )
        raise InvalidArgumentError(message, field="bank")
    else:
        documents: list[v1.StoredDocument] = client.memory.documents(arguments.bank)
        rows = [
            (one.document_id, one.mime_type, str(one.chunk_count), one.updated_at.ToJsonString()) for one in documents
        ]
        _print_rows(arguments, ("document", "type", "chunks", "updated"), rows)
    return 0


def _print_rows(arguments: argparse.Namespace, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if arguments.json:
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif on_terminal():
        table = Table(*names)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
    else:
        for row in rows:
            print("\t".join(row))


def _rendered(hit: MemoryHit, place: int) -> Text:
    """A passage for people: where it is from, then the text with the question's words marked."""
    head = Text.assemble((f"{place}. ", "bold"), (hit.citation, "cyan"), (f"  {hit.score:.4f}\n", "dim"))
    body = Text(hit.text)
    for start, end in hit.highlights:
        body.stylize("bold yellow", start, end)
    return head + body


def _leg(leg: v1.LegExplanation) -> str:
    if leg.filtered:
        return f"{leg.leg}: left out by the filter"
    if not leg.HasField("rank"):
        return f"{leg.leg}: not among its candidates"
    words = ", ".join(f"{word} {share:.2f}" for word, share in sorted(leg.terms.items(), key=lambda one: -one[1]))
    return f"{leg.leg}: rank {leg.rank}, score {leg.score:.4f}, adds {leg.contribution:.4f}" + (
        f" ({words})" if words else ""
    )


def _hit_facts(hit: MemoryHit, why: v1.ChunkExplanation | None) -> dict[str, Any]:
    facts = {
        "document": hit.document_id,
        "chunk": hit.chunk_id,
        "source": hit.source,
        "score": hit.score,
        "span": hit.span,
        "page": hit.page,
        "metadata": hit.metadata,
        "highlights": hit.highlights,
        "text": hit.text,
    }
    return {**facts, "explanation": _message(why)} if why else facts


def _facts(bank: v1.MemoryBank) -> dict[str, Any]:
    return {"bank": bank.identifier, "kind": _kind(bank), **_message(bank)}


def _message(message: Any) -> dict[str, Any]:  # noqa: ANN401 (any message)
    values = plain(json_format.MessageToDict(message, preserving_proto_field_name=True))
    assert isinstance(values, dict)
    return values


def _kind(bank: v1.MemoryBank) -> str:
    return bank.params.WhichOneof("params") or ""


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, bytes) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _common(argument_default: str | None = None) -> IntermixedParser:
    parser = IntermixedParser(add_help=False, argument_default=argument_default)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target(parser)
    return parser
