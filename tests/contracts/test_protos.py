"""The written rules of the protos, proved over what protoc makes of them: a function per rule, a test per file.

Rules that `buf lint` has too are here as well, so that they hold wherever only pytest runs.
"""

import importlib.resources
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

PROTOS = Path(__file__).resolve().parents[2] / "protos"
WELL_KNOWN = importlib.resources.files("grpc_tools") / "_proto"
FILES = sorted(path.name for path in (PROTOS / "llamastack/v1").glob("*.proto"))
PACKAGE = ".llamastack.v1."
# The option `(llamastack.v1.terminal) = true` as bytes: field 50001, varint, 1.
TERMINAL = bytes.fromhex("88b51801")

# JSON writes 64-bit integers as strings, so each one needs a reason.
WIDE_INTEGERS = {
    "SamplingParams.seed": "seeds of other clients use all 64 bits, and a rounded seed is another seed",
}
WIDE = {
    FieldDescriptorProto.TYPE_INT64,
    FieldDescriptorProto.TYPE_UINT64,
    FieldDescriptorProto.TYPE_SINT64,
    FieldDescriptorProto.TYPE_FIXED64,
    FieldDescriptorProto.TYPE_SFIXED64,
}
EMPTY_WORDS = {"a", "an", "the", "of", "this", "that", "its", "it"}


@dataclass(frozen=True, kw_only=True)
class Named:
    """Something that has a name and should have a comment."""

    kind: str
    name: str
    comment: str


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One proto file together with what the other files declare."""

    file: FileDescriptorProto
    messages: dict[str, DescriptorProto]
    codes: dict[str, str]
    serving: frozenset[str]

    @property
    def comments(self) -> dict[tuple[int, ...], str]:
        """Leading comments by path, as descriptor.proto numbers them."""
        return {tuple(place.path): place.leading_comments for place in self.file.source_code_info.location}

    def fields(self) -> Iterator[tuple[str, FieldDescriptorProto]]:
        """All fields of all messages, map entries left out."""
        for name, message in walk("", self.file.message_type):
            for field in message.field:
                yield f"{name}.{field.name}", field

    def methods(self) -> Iterator[tuple[str, MethodDescriptorProto, str]]:
        """All calls with their comments."""
        comments = self.comments
        for place, service in enumerate(self.file.service):
            for number, method in enumerate(service.method):
                yield f"{service.name}.{method.name}", method, comments.get((6, place, 2, number), "")


Rule = Callable[[Contract], Iterator[str]]


def walk(outer: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    """Messages with their names, nested ones included."""
    for message in messages:
        if not message.options.map_entry:
            yield outer + message.name, message
            yield from walk(f"{outer}{message.name}.", message.nested_type)


def declared(file: FileDescriptorProto) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Kind, name and path of everything that must have a comment."""
    yield from declared_messages("", file.message_type, (4,))
    yield from declared_enums("", file.enum_type, (5,))
    for place, service in enumerate(file.service):
        yield "service", service.name, (6, place)
        for number, method in enumerate(service.method):
            yield "rpc", f"{service.name}.{method.name}", (6, place, 2, number)
    for place, extension in enumerate(file.extension):
        yield "extension", extension.name, (7, place)


def declared_messages(
    prefix: str, messages: Iterable[DescriptorProto], path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Messages with what is in them; map entries and the oneofs of optional fields are protoc's own."""
    for place, message in enumerate(messages):
        here, name = (*path, place), prefix + message.name
        if message.options.map_entry:
            continue
        yield "message", name, here
        for number, field in enumerate(message.field):
            yield "field", f"{name}.{field.name}", (*here, 2, number)
        synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
        for number, oneof in enumerate(message.oneof_decl):
            if number not in synthetic:
                yield "oneof", f"{name}.{oneof.name}", (*here, 8, number)
        yield from declared_messages(f"{name}.", message.nested_type, (*here, 3))
        yield from declared_enums(f"{name}.", message.enum_type, (*here, 4))


def declared_enums(
    prefix: str, enums: Iterable[EnumDescriptorProto], path: tuple[int, ...]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Enums with their values."""
    for place, enum in enumerate(enums):
        yield "enum", prefix + enum.name, (*path, place)
        for number, value in enumerate(enum.value):
            yield "enum value", value.name, (*path, place, 2, number)


def named(contract: Contract) -> Iterator[Named]:
    """Everything in a file that must have a comment, with the comment."""
    comments = contract.comments
    for kind, name, path in declared(contract.file):
        yield Named(kind=kind, name=name, comment=comments.get(path, "").strip())


def words(text: str) -> set[str]:
    """Words of a name or a sentence in lower case, plural or not, without those that say nothing."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text).replace("_", " ")
    return {word.rstrip("s") for word in re.findall(r"[^\W_]+", split.lower())} - {w.rstrip("s") for w in EMPTY_WORDS}


def comments_say_more_than_the_name(contract: Contract) -> Iterator[str]:
    """Every declared thing has a leading comment that is more than its own name."""
    for thing in named(contract):
        if not thing.comment:
            yield f"{thing.kind} {thing.name} has no comment"
        elif thing.kind == "message":  # "Request of CreateAgent." is enough: its fields say the rest
            if len(words(thing.comment)) < 2 and words(thing.comment) != words(thing.name):
                yield f"message {thing.name} has a comment of one word: {thing.comment!r}"
        elif words(thing.comment) in (set(), words(thing.name.rsplit(".", 1)[-1])):
            yield f"{thing.kind} {thing.name} only repeats its name: {thing.comment!r}"


def enums_are_prefixed_and_start_unspecified(contract: Contract) -> Iterator[str]:
    """Enum values carry the enum's name, and zero means unspecified."""
    nested = [enum for _, message in walk("", contract.file.message_type) for enum in message.enum_type]
    for enum in [*contract.file.enum_type, *nested]:
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", enum.name).upper() + "_"
        for value in enum.value:
            if not value.name.startswith(prefix):
                yield f"{value.name} does not start with {prefix}"
            if (value.number == 0) != (value.name == f"{prefix}UNSPECIFIED"):
                yield f"{value.name} = {value.number}, but zero and only zero is {prefix}UNSPECIFIED"


def lists_are_paged(contract: Contract) -> Iterator[str]:
    """Every List has pages from its first day."""
    for name, method, _ in contract.methods():
        if not method.name.startswith("List"):
            continue
        request = {field.name: field for field in contract.messages[method.input_type].field}
        response = {field.name: field for field in contract.messages[method.output_type].field}
        if "page_size" not in request or request["page_size"].type != FieldDescriptorProto.TYPE_INT32:
            yield f"{name}: the request has no int32 page_size"
        if "page_token" not in request or request["page_token"].type != FieldDescriptorProto.TYPE_STRING:
            yield f"{name}: the request has no string page_token"
        if "next_page_token" not in response or response["next_page_token"].type != FieldDescriptorProto.TYPE_STRING:
            yield f"{name}: the response has no string next_page_token"
        if "data" not in response or response["data"].label != FieldDescriptorProto.LABEL_REPEATED:
            yield f"{name}: the response has no repeated data"


def streams_are_numbered_and_end_clearly(contract: Contract) -> Iterator[str]:
    """Every streamed response has a sequence and events, some of them terminal, and heartbeats."""
    for name, method, comment in contract.methods():
        if not method.server_streaming:
            continue
        response = contract.messages[method.output_type]
        sequence = [field for field in response.field if field.name == "sequence"]
        if not sequence or sequence[0].type != FieldDescriptorProto.TYPE_UINT32 or sequence[0].number != 1:
            yield f"{name}: the response has no `uint32 sequence = 1`"
        oneofs = [oneof.name for oneof in response.oneof_decl]
        events = [
            field
            for field in response.field
            if field.HasField("oneof_index") and oneofs[field.oneof_index] == "event" and not field.proto3_optional
        ]
        terminal = [field.name for field in events if TERMINAL in field.options.SerializeToString()]
        if not terminal:
            yield f"{name}: no member of the oneof `event` is terminal"
        for event, type_name in (("heartbeat", "Heartbeat"), ("go_away", "GoAway")):
            if not any(field.name == event and field.type_name == PACKAGE + type_name for field in events):
                yield f"{name}: the oneof `event` has no {type_name} {event}"
        if not re.search(r"\bends?\b", comment, re.IGNORECASE):
            yield f"{name}: the comment does not say how the stream ends"


def calls_name_their_errors(contract: Contract) -> Iterator[str]:
    """Every call's comment names its errors, each reason under the code that errors.proto gives it."""
    for name, _, comment in contract.methods():
        text = " ".join(comment.split())
        if "Errors:" not in text:
            yield f"{name}: the comment names no errors"
            continue
        for code, listed in re.findall(r"\b([A-Z][A-Z_]+) \(([A-Z][A-Z_, ]+)\)", text.split("Errors:", 1)[1]):
            for reason in re.split(r",\s*", listed):
                if contract.codes.get(reason) != code:
                    yield f"{name}: {code} ({reason}) is no pair of errors.proto"


def no_any(contract: Contract) -> Iterator[str]:
    """Nothing hides its type."""
    for name, field in contract.fields():
        if field.type_name == ".google.protobuf.Any":
            yield f"{name} is a google.protobuf.Any"


def no_wide_integers(contract: Contract) -> Iterator[str]:
    """64-bit integers appear only with a reason."""
    for name, field in contract.fields():
        if field.type in WIDE and name not in WIDE_INTEGERS:
            yield f"{name} is a 64-bit integer, which JSON writes as a string"


def calls_are_named_after_their_messages(contract: Contract) -> Iterator[str]:
    """Service, request and response follow the call's name and live in its file."""
    own = {message.name for message in contract.file.message_type}
    for service in contract.file.service:
        if not service.name.endswith("Service"):
            yield f"service {service.name} does not end in Service"
        calls = {method.name for method in service.method}
        for method in service.method:
            for kind, type_name in (("Request", method.input_type), ("Response", method.output_type)):
                if type_name != PACKAGE + method.name + kind or method.name + kind not in own:
                    yield f"{service.name}.{method.name}: {type_name} is not {method.name}{kind} of the same file"
            unary = method.name.removeprefix("Stream")
            if method.server_streaming and not method.client_streaming and unary != method.name and unary in calls:
                fields = contract.messages[method.input_type].field
                if not any(f.name == "request" and f.type_name == f"{PACKAGE}{unary}Request" for f in fields):
                    yield f"{service.name}.{method.name}: the request does not hold `{unary}Request request`"


def streaming_is_no_flag(contract: Contract) -> Iterator[str]:
    """Unary and streamed answers are two calls, never a flag."""
    for name, field in contract.fields():
        if field.name == "stream" and field.type == FieldDescriptorProto.TYPE_BOOL:
            yield f"{name} is a flag for streaming"


def shared_nouns_know_no_service(contract: Contract) -> Iterator[str]:
    """A file without a service imports none that has one."""
    if not contract.file.service:
        for imported in contract.file.dependency:
            if imported in contract.serving:
                yield f"{contract.file.name} holds nouns but imports {imported}, which has a service"


RULES: list[Rule] = [
    comments_say_more_than_the_name,
    enums_are_prefixed_and_start_unspecified,
    lists_are_paged,
    streams_are_numbered_and_end_clearly,
    calls_name_their_errors,
    no_any,
    no_wide_integers,
    calls_are_named_after_their_messages,
    streaming_is_no_flag,
    shared_nouns_know_no_service,
]


def compile_protos(folder: Path, scratch: Path) -> dict[str, Contract]:
    """Compile all protos below a folder and answer them by file name."""
    target = scratch / "set.binpb"
    files = sorted(folder.glob("llamastack/v1/*.proto"))
    imports = [f"-I{place}" for place in (folder, PROTOS, WELL_KNOWN)]
    outputs = ["--include_source_info", "--include_imports", f"--descriptor_set_out={target}"]
    wanted = [PROTOS / "llamastack/v1/errors.proto", *files]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *imports, *outputs, *map(str, wanted)], check=True)
    found = FileDescriptorSet.FromString(target.read_bytes())
    messages = {f".{file.package}.{m.name}": m for file in found.file for m in file.message_type}
    serving = frozenset(file.name for file in found.file if file.service)
    codes = {}
    for file in found.file:
        if file.name == "llamastack/v1/errors.proto":
            errors = Contract(file=file, messages=messages, codes={}, serving=serving)
            for value in named(errors):
                if value.kind == "enum value":
                    codes[value.name.removeprefix("ERROR_REASON_")] = value.comment.split(",", 1)[0]
    own = {path.name for path in files}
    return {
        Path(file.name).name: Contract(file=file, messages=messages, codes=codes, serving=serving)
        for file in found.file
        if file.name.startswith("llamastack/") and Path(file.name).name in own
    }


@pytest.fixture(scope="session")
def contracts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contract]:
    return compile_protos(PROTOS, tmp_path_factory.mktemp("protos"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", FILES)
def test_every_proto_keeps_the_rule(name: str, rule: Rule, contracts: dict[str, Contract]) -> None:
    violations = list(rule(contracts[name]))
    assert not violations, "\n" + "\n".join(violations)


def test_every_wide_integer_that_is_excused_still_exists(contracts: dict[str, Contract]) -> None:
    wide = {name for contract in contracts.values() for name, field in contract.fields() if field.type in WIDE}
    assert sorted(WIDE_INTEGERS) == sorted(wide)


GOOD = """
syntax = "proto3";
package llamastack.v1;
import "llamastack/v1/common.proto";
import "llamastack/v1/options.proto";
// Things of the test.
service ThingService {
  // Lists all. Errors: INVALID_ARGUMENT (INVALID_PAGE_TOKEN) when the token is damaged.
  rpc ListThings(ListThingsRequest) returns (ListThingsResponse);
  // Watches one until it ends. Errors: NOT_FOUND (NOT_FOUND) when there is none.
  rpc WatchThing(WatchThingRequest) returns (stream WatchThingResponse);
}
// How large it may be.
enum ThingSize {
  // Not known.
  THING_SIZE_UNSPECIFIED = 0;
  // Fits in a hand.
  THING_SIZE_SMALL = 1;
}
// What is asked.
message ListThingsRequest {
  // Entries at most.
  int32 page_size = 1;
  // Where to go on.
  string page_token = 2;
}
// What is answered.
message ListThingsResponse {
  // Sizes of those found.
  repeated ThingSize data = 1;
  // Where to go on.
  string next_page_token = 2;
}
// What is asked.
message WatchThingRequest {}
// What is answered.
message WatchThingResponse {
  // Counts from 1.
  uint32 sequence = 1;
  // Exactly one of these.
  oneof event {
    // Last of all.
    ThingSize done = 2 [(llamastack.v1.terminal) = true];
    // Nothing new.
    Heartbeat heartbeat = 3;
    // Come back elsewhere.
    GoAway go_away = 4;
  }
}
"""

# Each breaks one rule of the good proto by one replacement.
BREAKS: list[tuple[Rule, str, str, str]] = [
    (comments_say_more_than_the_name, "  // Entries at most.\n", "", "ListThingsRequest.page_size"),
    (comments_say_more_than_the_name, "// Entries at most.", "// The page size.", "only repeats its name"),
    (comments_say_more_than_the_name, "// How large it may be.\n", "", "enum ThingSize"),
    (comments_say_more_than_the_name, "  // Fits in a hand.\n", "", "THING_SIZE_SMALL"),
    (comments_say_more_than_the_name, "  // Exactly one of these.\n", "", "oneof WatchThingResponse.event"),
    (comments_say_more_than_the_name, "// Things of the test.\n", "", "service ThingService"),
    (enums_are_prefixed_and_start_unspecified, "THING_SIZE_SMALL", "SMALL_THING", "SMALL_THING"),
    (enums_are_prefixed_and_start_unspecified, "THING_SIZE_UNSPECIFIED", "THING_SIZE_TINY", "THING_SIZE_TINY"),
    (lists_are_paged, "int32 page_size", "int32 limit", "page_size"),
    (lists_are_paged, "string page_token", "string token", "page_token"),
    (lists_are_paged, "repeated ThingSize data", "repeated ThingSize things", "repeated data"),
    (lists_are_paged, "string next_page_token", "string next", "next_page_token"),
    (streams_are_numbered_and_end_clearly, "uint32 sequence", "uint32 number", "sequence"),
    (streams_are_numbered_and_end_clearly, " [(llamastack.v1.terminal) = true]", "", "terminal"),
    (streams_are_numbered_and_end_clearly, "Heartbeat heartbeat", "Heartbeat beat", "heartbeat"),
    (streams_are_numbered_and_end_clearly, "GoAway go_away", "GoAway leave", "go_away"),
    (streams_are_numbered_and_end_clearly, "oneof event", "oneof payload", "terminal"),
    (streams_are_numbered_and_end_clearly, " until it ends", "", "how the stream ends"),
    (calls_name_their_errors, "Lists all. Errors: ", "Lists all. ", "names no errors"),
    (calls_name_their_errors, "(INVALID_PAGE_TOKEN)", "(NOT_FOUND)", "no pair"),
    (calls_name_their_errors, "(INVALID_PAGE_TOKEN)", "(BAD_LUCK)", "no pair"),
    (no_any, "ThingSize done", "google.protobuf.Any done", "google.protobuf.Any"),
    (no_wide_integers, "ThingSize done", "int64 done", "64-bit"),
    (calls_are_named_after_their_messages, "ThingService", "Things", "does not end in Service"),
    (calls_are_named_after_their_messages, "ListThingsRequest", "ThingQuery", "ThingQuery"),
    (calls_are_named_after_their_messages, "WatchThing", "StreamListThings", "does not hold"),
    (streaming_is_no_flag, "string page_token", "bool stream", "flag"),
]  # fmt: skip


def violations_of(scratch: Path, rule: Rule, **protos: str) -> list[str]:
    """What a rule says of the first of some protos, given by name and text."""
    folder = scratch / "llamastack/v1"
    folder.mkdir(parents=True)
    for name, text in protos.items():
        (folder / f"{name}.proto").write_text(text)
    return list(rule(compile_protos(scratch, scratch)[f"{next(iter(protos))}.proto"]))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_proto_breaks_no_rule(rule: Rule, tmp_path: Path) -> None:
    assert violations_of(tmp_path, rule, thing=GOOD) == []


@pytest.mark.parametrize(
    ("rule", "old", "new", "named_violation"), BREAKS, ids=[f"{rule.__name__}: {text}" for rule, _, _, text in BREAKS]
)
def test_a_bad_proto_is_caught(rule: Rule, old: str, new: str, named_violation: str, tmp_path: Path) -> None:
    assert old in GOOD
    bad = GOOD.replace(old, new)
    if "protobuf.Any" in new:
        bad = bad.replace('import "llamastack', 'import "google/protobuf/any.proto";\nimport "llamastack', 1)
    violations = violations_of(tmp_path, rule, thing=bad)
    assert any(named_violation in violation for violation in violations), violations


def test_a_file_of_nouns_that_imports_a_service_is_caught(tmp_path: Path) -> None:
    nouns = """
    syntax = "proto3";
    package llamastack.v1;
    import "llamastack/v1/service.proto";
    // Holds what another file declares.
    message Holder {
      // What it holds.
      Held held = 1;
    }
    """
    service = """
    syntax = "proto3";
    package llamastack.v1;
    // Answers nothing.
    service HeldService {}
    // What is held.
    message Held {}
    """
    violations = violations_of(tmp_path, shared_nouns_know_no_service, nouns=nouns, service=service)
    assert violations == [
        "llamastack/v1/nouns.proto holds nouns but imports llamastack/v1/service.proto, which has a service"
    ]


def test_generated_stubs_are_fresh() -> None:
    check = subprocess.run(
        [sys.executable, str(PROTOS / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr
