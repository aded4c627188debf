r"""A model that answers from a script: for tests, demonstrations and measuring everything but the model.

The script stands in the model's metadata as `script`, a list of rules; the first rule that matches the dialog's last
message answers. Without a rule that matches, the answer is the last message itself.

    {"role": "user", "match": "weather in (\w+)", "reply": "It is sunny in {1}."}
    {"role": "user", "match": "time", "tool_calls": [{"tool_name": "clock", "arguments": {"zone": "UTC"}}]}
    {"role": "tool", "reply": "The tool says: {0}"}

`match` is a regular expression searched in the message's text; `{0}` in a reply is the whole match and `{1}` its first
group. `role` (user, tool, system) restricts the rule. `tools` (true or false) restricts it to requests with or without
tools. `token_seconds` waits before every token; `hang` waits for ever after the reply, as a stuck model would;
`error` ends the call with UNAVAILABLE and this message after the reply. A token is a word with the space before it.
A reply that does not have the request's `response_format` ends the call with FAILED_PRECONDITION: a script cannot be
constrained. Every word of a script has probability 1, and no alternatives. The metadata's `context` is how many tokens
the model reads, 8192 unless set; longer dialogs are refused, as by real models. Sampling settings are checked like
everywhere and change nothing: a script has no randomness. Rerank models have no script: an item's score is the share of
the query's distinct words that occur in it, whatever their case.
"""

import asyncio
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from google.protobuf import json_format
from llguidance import LLMatcher, LLTokenizer

from llamastack import v1
from services.inference import dialog
from services.inference.adapter_names import split_adapter
from services.inference.config import ScriptedConfig
from services.inference.constraints import format_grammar
from services.inference.provider import Answer, Facts, Report, Sink, Work
from services.inference.providers.scripted_classifier import ScriptedClassifier
from services.inference.rerank_text import rerank_response, texts_of
from services.inference.validate import allowed_tokens, allows_several_calls, sampling_of
from stack_client.content import plain
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError, UnsupportedError

SLOT = re.compile(r"\{(\d+)\}")  # anything else in braces is text
WORD = re.compile(r"\w+")
TOKEN = re.compile(r"\s*\S+|\s+$")
CONTEXT = 8192
EMBEDDING_DIMENSION = 16
UNKNOWN_ID = -1


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of a script; the module's docstring says what the fields mean."""

    match: str = ""
    role: str = ""
    tools: bool | None = None
    reply: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    token_seconds: float = 0.0
    hang: bool = False
    error: str = ""


@dataclass(frozen=True)
class Reply:
    """What a rule answers to one message."""

    text: str
    rule: Rule


class ScriptedProvider:
    """Serves scripted models; embedding models hash words into 16 dimensions, rerank models compare them."""

    def __init__(self, config: ScriptedConfig) -> None:
        self._config = config
        self._scripts: dict[str, list[Rule]] = {}
        self._contexts: dict[str, int] = {}
        self._classifiers: dict[str, ScriptedClassifier] = {}
        self._speaking = 0

    @property
    def work(self) -> Work:
        """Answers being spoken."""
        return Work(running=self._speaking)

    async def __aenter__(self) -> Self:
        """Nothing to start."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing to stop."""

    async def load(self, model: v1.Model, report: Report) -> Facts:
        """Read the model's script."""
        if split_adapter(model.identifier) is not None:
            raise UnsupportedError("the scripted provider has no adapters", field="model_id")
        if model.model_type == v1.MODEL_TYPE_CLASSIFIER:
            report("reading the script")
            classifier = ScriptedClassifier(json_format.MessageToDict(model.metadata))
            self._classifiers[model.identifier] = classifier
            return classifier.facts
        if model.model_type == v1.MODEL_TYPE_EMBEDDING:
            self._scripts[model.identifier] = []
            return {"embedding_dimension": EMBEDDING_DIMENSION, "context_length": CONTEXT}
        if model.model_type == v1.MODEL_TYPE_RERANK:
            self._scripts[model.identifier] = []
            return {"architecture": "scripted", "activation": "identity"}
        report("reading the script")
        metadata = json_format.MessageToDict(model.metadata)
        self._scripts[model.identifier] = [_rule(entry) for entry in metadata.get("script", [])]
        self._contexts[model.identifier] = context = _context(metadata.get("context", CONTEXT))
        return {"context_length": context}

    async def unload(self, model_id: str) -> None:
        """Forget the script."""
        self._classifiers.pop(model_id, None)
        self._scripts.pop(model_id, None)  # one that could not be loaded has none

    async def chat(self, request: v1.ChatCompletionRequest, sink: Sink) -> Answer:
        """Answer by the first rule that matches the last message."""
        grammar = format_grammar(request.response_format) if request.HasField("response_format") else ""
        sampling = sampling_of(request.sampling_params, request.logprobs if request.HasField("logprobs") else None)
        _refuse(bool(sampling.asked_tokens), "logprobs.token_ids")
        tools = {tool.name for tool in dialog.tool_definitions(request.tools)}
        messages = dialog.chat_messages(request.messages)
        prompt_tokens = sum(len(TOKEN.findall(message.content)) for message in messages)
        allowed_tokens(
            prompt_tokens,
            0,  # a script is as long as it is
            context=self._contexts.get(request.model_id, CONTEXT),
            model_id=request.model_id,
        )
        usable = bool(tools) and request.tool_config.tool_choice != "none"
        reply = self._reply(request.model_id, messages[-1].role, messages[-1].content, with_tools=usable)
        if grammar and not (usable and reply.rule.tool_calls):
            _check_form(reply.text, grammar)
        sink.admitted()
        spoken, finish = await self._speak(reply, request.sampling_params, sink, top=sampling.top_logprobs)
        calls = [call for call in reply.rule.tool_calls if usable] if finish == v1.FINISH_REASON_STOP else []
        if not allows_several_calls(request.tool_config):
            calls = calls[:1]
        for index, call in enumerate(calls):
            sink.tool_call(_tool_call(call, call_id=f"call_{len(messages)}_{index}"))
        if calls:
            finish = v1.FINISH_REASON_TOOL_CALLS
        stop = v1.STOP_REASON_OUT_OF_TOKENS if finish == v1.FINISH_REASON_LENGTH else v1.STOP_REASON_END_OF_TURN
        return Answer(
            stop_reason=v1.STOP_REASON_END_OF_MESSAGE if calls else stop,
            finish_reason=finish,
            prompt_tokens=prompt_tokens,
            completion_tokens=spoken,
        )

    async def complete(self, request: v1.CompletionRequest, sink: Sink) -> Answer:
        """Answer as if the text were a user message."""
        _refuse(request.HasField("logprobs"), "logprobs")
        _refuse(request.HasField("response_format"), "response_format")
        _refuse(bool(request.token_ids), "token_ids")
        sampling_of(request.sampling_params, None)
        text = dialog.text_of(request.content, "content")
        reply = self._reply(request.model_id, "user", text, with_tools=False)
        sink.admitted()
        spoken, finish = await self._speak(reply, request.sampling_params, sink)
        stop = v1.STOP_REASON_OUT_OF_TOKENS if finish == v1.FINISH_REASON_LENGTH else v1.STOP_REASON_END_OF_TURN
        return Answer(
            stop_reason=stop,
            finish_reason=finish,
            prompt_tokens=len(TOKEN.findall(text)),
            completion_tokens=spoken,
        )

    async def embed(self, request: v1.EmbedRequest) -> v1.EmbedResponse:
        """Count words by hash: equal texts get equal vectors, texts that share words similar ones."""
        _refuse(request.HasField("output_dimension"), "output_dimension")
        texts = [dialog.text_of(content, f"contents[{i}]") for i, content in enumerate(request.contents)]
        tokens = sum(len(text.split()) for text in texts)
        return v1.EmbedResponse(
            embeddings=[v1.Embedding(values=_hashed(text)) for text in texts],
            usage=v1.Usage(prompt_tokens=tokens, total_tokens=tokens),
            model_id=request.model_id,
        )

    async def classify(self, request: v1.ClassifyRequest) -> v1.ClassifyResponse:
        """Classify by the script; see `scripted_classifier`."""
        self._speaking += 1
        try:
            return await self._classifiers[request.model_id].classify(request)
        finally:
            self._speaking -= 1

    async def rerank(self, request: v1.RerankRequest) -> v1.RerankResponse:
        """Count the words of the query that each item has."""
        question, items = texts_of(request)
        wanted = _words(question)
        return rerank_response(request, [len(wanted & _words(item)) / max(1, len(wanted)) for item in items])

    async def tokenize(self, request: v1.TokenizeRequest) -> v1.TokenizeResponse:
        """A script has no vocabulary."""
        raise UnsupportedError(f"model {request.model_id} is scripted and has no tokenizer", field="model_id")

    async def detokenize(self, request: v1.DetokenizeRequest) -> v1.DetokenizeResponse:
        """A script has no vocabulary."""
        raise UnsupportedError(f"model {request.model_id} is scripted and has no tokenizer", field="model_id")

    def _reply(self, model_id: str, role: str, text: str, *, with_tools: bool) -> Reply:
        for rule in self._scripts[model_id]:
            found = re.search(rule.match, text)
            if found and rule.role in {"", role} and rule.tools in {None, with_tools}:
                groups = [found[0] if rule.match else text, *(group or "" for group in found.groups())]
                return Reply(SLOT.sub(functools.partial(_group, groups), rule.reply), rule)
        return Reply(text, Rule())

    async def _speak(
        self, reply: Reply, params: v1.SamplingParams, sink: Sink, *, top: int | None = None
    ) -> tuple[int, "v1.FinishReason.ValueType"]:
        """Push the reply token by token; returns the number of tokens and why it ended."""
        self._speaking += 1
        try:
            return await self._recite(reply, params, sink, top=top)
        finally:
            self._speaking -= 1

    async def _recite(
        self, reply: Reply, params: v1.SamplingParams, sink: Sink, *, top: int | None
    ) -> tuple[int, "v1.FinishReason.ValueType"]:
        stops = [(at + len(stop), at) for stop in params.stop if (at := reply.text.find(stop)) >= 0]
        tokens = TOKEN.findall(reply.text[: min(stops)[1]] if stops else reply.text)
        limit = params.max_tokens or len(tokens)
        for token in tokens[:limit]:
            if reply.rule.token_seconds:
                await asyncio.sleep(reply.rule.token_seconds)
            sink.text(token, tokens=1, logprobs=[] if top is None else [_certain(token, top=top)])
        if reply.rule.hang:
            await asyncio.Event().wait()
        if reply.rule.error:
            raise UnavailableError(reply.rule.error)
        cut = len(tokens) > limit
        return min(len(tokens), limit), v1.FINISH_REASON_LENGTH if cut else v1.FINISH_REASON_STOP


def _certain(token: str, *, top: int) -> v1.TokenLogProbs:
    """The log probabilities of a token that nothing else could have been."""
    chosen = v1.TokenLogProb(token=token, token_id=UNKNOWN_ID, bytes=token.encode(), logprob=0.0)
    return v1.TokenLogProbs(logprobs_by_token={token: 0.0}, chosen=chosen, top=[chosen][:top])


def _context(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        message = f"context {value!r} of a scripted model is no number of tokens; give at least 1"
        raise InvalidArgumentError(message, field="metadata.context")
    return int(value)


def _rule(entry: object) -> Rule:
    if not isinstance(entry, dict):
        raise InvalidArgumentError(f"a rule of a script is a JSON object, not {entry!r}", field="metadata.script")
    unknown = entry.keys() - Rule.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(Rule.__dataclass_fields__)
        message = f"unknown key {min(unknown)!r} in a rule of the script; known are {known}"
        raise InvalidArgumentError(message, field="metadata.script")
    for name, kind in (("match", str), ("role", str), ("reply", str), ("error", str), ("tool_calls", list)):
        if not isinstance(entry.get(name, kind()), kind):
            message = f"{name} of a rule of the script is {entry[name]!r}; it must be a {kind.__name__}"
            raise InvalidArgumentError(message, field="metadata.script")
    if not all(isinstance(call, dict) and call.get("tool_name") for call in entry.get("tool_calls", ())):
        raise InvalidArgumentError("a tool call of the script needs a tool_name", field="metadata.script")
    try:
        re.compile(entry.get("match", ""))
    except re.error as error:
        message = f"match {entry['match']!r} is no regular expression: {error}"
        raise InvalidArgumentError(message, field="metadata.script") from error
    return Rule(**{**entry, "tool_calls": tuple(entry.get("tool_calls", ()))})


def _check_form(text: str, grammar: str) -> None:
    """Refuse a reply that constrained decoding could not have written."""
    matcher = LLMatcher(_bytes_as_tokens(), grammar)
    if not matcher.consume_tokens(list(text.encode())) or not matcher.is_accepting():
        message = f"the script's reply {text!r} does not have the form that response_format asks for; change the script"
        raise FailedPreconditionError(message, field="response_format")


@functools.cache
def _bytes_as_tokens() -> LLTokenizer:
    return LLTokenizer("byte")


def _group(groups: Sequence[str], slot: re.Match[str]) -> str:
    """What a slot of a reply stands for; a slot without a group is text."""
    number = int(slot[1])
    return groups[number] if number < len(groups) else slot[0]


def _tool_call(call: Mapping[str, Any], *, call_id: str) -> v1.ToolCall:
    arguments = plain(call.get("arguments", {}))
    result = v1.ToolCall(call_id=call_id, tool_name=call["tool_name"], arguments_json=json.dumps(arguments))
    json_format.ParseDict(arguments, result.arguments)
    return result


def _hashed(text: str) -> list[float]:
    vector = [0.0] * EMBEDDING_DIMENSION
    for word in text.lower().split():
        vector[hashlib.sha256(word.encode()).digest()[0] % EMBEDDING_DIMENSION] += 1.0
    norm = sum(x * x for x in vector) ** 0.5 or 1.0
    return [x / norm for x in vector]


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.casefold()))


def _refuse(asked: bool, field: str) -> None:  # noqa: FBT001
    if asked:
        raise UnsupportedError(f"{field}: a scripted model cannot do this", field=field)
