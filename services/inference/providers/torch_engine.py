"""The torch provider: renders dialogs into token ids, runs them in the engine process, and reads the answer back.

This process never imports torch: tokenizers and chat formats live here, weights live in the engine's process.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self

import numpy as np

from llamastack import v1
from services.inference import dialog
from services.inference.adapter_names import split_adapter
from services.inference.classifier_text import ClassifierModel, classifier_model, classify_response, cut_texts
from services.inference.config import TorchConfig
from services.inference.constraints import format_grammar
from services.inference.embedding_text import EmbeddingEncoder, EmbeddingModel, embedding_model
from services.inference.engine import commands
from services.inference.engine.request import Calls, EngineLimits, Request, Sampling
from services.inference.engine_client import EngineClient
from services.inference.formats import choose_quantisation
from services.inference.hardware import choose_device, choose_dtype, usable_cpus
from services.inference.locate import locate
from services.inference.provider import Answer, Facts, Report, Sink, Work
from services.inference.providers.torch_requests import (
    BEGIN_OF_TEXT,
    TextModel,
    check_ids,
    grammars,
    prompt_format,
    template_arguments,
)
from services.inference.reading import Reading
from services.inference.rerank_text import RerankModel, rerank_model, rerank_response, texts_of
from services.inference.token_spans import byte_spans, encoder_spans
from services.inference.tool_stream import ToolStream
from services.inference.validate import allowed_tokens, allows_several_calls, sampling_of
from services.llama import checkpoint
from services.llama.messages import ToolDefinition
from services.runtime.calls import current_tenant
from services.runtime.offload import offload
from stack_client.errors import InvalidArgumentError, ResourceExhaustedError, StackError, UnsupportedError

logger = logging.getLogger(__name__)

P = ParamSpec("P")

_KINDS: Mapping[int, Literal["llm", "embedding", "classifier", "rerank"]] = {
    v1.MODEL_TYPE_LLM: "llm",
    v1.MODEL_TYPE_EMBEDDING: "embedding",
    v1.MODEL_TYPE_CLASSIFIER: "classifier",
    v1.MODEL_TYPE_RERANK: "rerank",
}


class TorchProvider:
    """Serves Llama-family text models, BERT sentence encoders, classifiers and rerankers from one engine process."""

    def __init__(self, config: TorchConfig, *, cache_dir: Path) -> None:
        self._config = config
        self._cache_dir = cache_dir
        self._device, device_reason = choose_device(config.device)
        self._dtype, dtype_reason = choose_dtype(config.dtype, device=self._device)
        self._threads = config.threads or usable_cpus()
        logger.info(
            "torch provider device=%s (%s) dtype=%s (%s) threads=%d",
            self._device, device_reason, self._dtype, dtype_reason, self._threads,
        )  # fmt: skip
        self._engine = EngineClient(threads=self._threads)
        self._models: dict[str, TextModel | EmbeddingModel | ClassifierModel | RerankModel] = {}
        self._ids = itertools.count(1)

    @property
    def engine(self) -> EngineClient:
        """The engine process, for metrics and tests."""
        return self._engine

    @property
    def work(self) -> Work:
        """Generations in the engine; what exceeds its batch waits there."""
        running = min(self._engine.in_flight, self._config.running_requests)
        waiting = self._engine.in_flight - running
        held = sum(figures.held * figures.block_size for figures in self._engine.figures.values())
        return Work(running=running, waiting=waiting, held_tokens=held)

    async def __aenter__(self) -> Self:
        """Nothing yet: the engine process starts with the first model, so a node without one does without torch."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the engine process."""
        await self._engine.stop()

    async def load(self, model: v1.Model, report: Report) -> Facts:
        """Convert where needed, load the weights in the engine and the tokenizer here."""
        if model.model_type not in _KINDS:
            kind = v1.ModelType.Name(model.model_type).removeprefix("MODEL_TYPE_").lower()
            raise UnsupportedError(f"the torch provider does not serve {kind} models yet", field="model_type")
        adapter = split_adapter(model.identifier)
        if adapter is not None:
            return await self._load_adapter(model, base=adapter[0], report=report)
        quantisation = choose_quantisation(model, default=self._config.quantisation, device=self._device)
        command = commands.Load(
            model=model.identifier,
            kind=_KINDS[model.model_type],
            path=await asyncio.to_thread(locate, model.provider_resource_id, report=report),
            cache_dir=self._cache_dir / "models",
            dtype=self._dtype,
            device=self._device,
            limits=EngineLimits(
                step_tokens=self._config.step_tokens,
                running_requests=self._config.running_requests,
                cached_tokens=self._config.cached_tokens,
                block_size=self._config.block_size,
            ),
            quantisation=quantisation,
            kernels=self._config.dtype == "auto",
            tensor_parallel=self._config.tensor_parallel,
            threads=self._threads,
        )
        loaded = await self._engine.load(command, report)
        report("loading the tokenizer")
        if command.kind == "classifier":
            return await self._encoder_loaded(loaded, classifier_model, classes=loaded.dimension)
        if command.kind == "rerank":
            return await self._encoder_loaded(loaded, rerank_model, architecture=loaded.architecture)
        if command.kind == "embedding":
            encoder = await asyncio.to_thread(embedding_model, loaded.folder)
            self._models[model.identifier] = encoder
            return {"embedding_dimension": loaded.dimension, "context_length": encoder.context}
        side = await asyncio.to_thread(checkpoint.load_text, loaded.folder)
        context = min(side.config.max_context, loaded.cached_tokens)
        text = TextModel(tokenizer=side.tokenizer, chat_format=side.chat_format, context=context, loaded=loaded)
        self._models[model.identifier] = text
        return {
            "context_length": text.context,
            "vocabulary": side.config.vocab_size,
            "vocab_size": side.config.vocab_size,
            "chat_template": side.has_template,
            **({"guard_template": side.guard} if side.guard else {}),
            "parameters": loaded.parameters,
            "dtype": loaded.dtype,
            "device": self._device,
            "weights_hash": loaded.weights_hash,
            "quantisation": loaded.quantisation,
            "kernels": loaded.kernels or "torch",
        }

    async def _encoder_loaded(
        self,
        loaded: commands.Loaded,
        read: Callable[Concatenate[Path, P], ClassifierModel | RerankModel],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Facts:
        """Read the text side of a classifier or rerank model that the engine has loaded."""
        try:
            model = await asyncio.to_thread(read, loaded.folder, *args, **kwargs)
        except StackError:
            self._engine.unload(loaded.model)
            raise
        self._models[loaded.model] = model
        return {
            **model.facts,
            "architecture": loaded.architecture,
            "weights_hash": loaded.weights_hash,
            "parameters": loaded.parameters,
            "device": self._device,
        }

    async def _load_adapter(self, model: v1.Model, *, base: str, report: Report) -> Facts:
        """Load a LoRA adapter in the engine; text side and context are its base's."""
        text = self._text_model(base)
        path = await asyncio.to_thread(locate, model.provider_resource_id, report=report)
        command = commands.LoadAdapter(model=model.identifier, base=base, path=path)
        loaded = await self._engine.load(command, report)
        self._models[model.identifier] = text
        return {
            "context_length": text.context,
            "parameters": loaded.parameters,
            "dtype": loaded.dtype,
            "device": self._device,
            "quantisation": text.loaded.quantisation,
            "base_model": base,
            "base_verified": bool(loaded.weights_hash),
            "adapter_rank": loaded.rank,
            "adapter_targets": list(loaded.targets),
        }

    async def unload(self, model_id: str) -> None:
        """Free weights and tokenizer; running requests of the model end."""
        self._models.pop(model_id, None)
        self._engine.unload(model_id)

    async def chat(self, request: v1.ChatCompletionRequest, sink: Sink) -> Answer:
        """Render the dialog, generate, and read tool calls from the answer."""
        model = self._text_model(request.model_id)
        if request.tool_config.system_message_behavior == v1.SYSTEM_MESSAGE_BEHAVIOR_REPLACE:
            field = "tool_config.system_message_behavior"
            raise UnsupportedError(f"{field}: replace is not built yet; use append", field=field)
        sampling = sampling_of(request.sampling_params, request.logprobs if request.HasField("logprobs") else None)
        choice = request.tool_config.tool_choice
        tools = dialog.tool_definitions(request.tools) if choice != "none" else []
        grammar, offered = await asyncio.to_thread(grammars, model, request, tools)
        prompt = await self._render(model, request.messages, tools=tools, config=request.tool_config)
        reader = ToolStream(
            sink, tool_names=[tool.name for tool in tools], several=allows_several_calls(request.tool_config)
        )
        answer = await self._generate(
            request.model_id,
            model,
            prompt,
            request.sampling_params,
            sampling,
            reader,
            priority=request.priority,
            grammar=grammar,
            calls=offered,
        )
        if reader.finish(complete=answer.finish_reason == v1.FINISH_REASON_STOP):
            return replace(answer, stop_reason=v1.STOP_REASON_END_OF_MESSAGE, finish_reason=v1.FINISH_REASON_TOOL_CALLS)
        return answer

    async def complete(self, request: v1.CompletionRequest, sink: Sink) -> Answer:
        """Continue a text as it stands; the beginning-of-text token is added where the model has one."""
        model = self._text_model(request.model_id)
        grammar = ""
        if request.HasField("response_format"):
            grammar = await asyncio.to_thread(format_grammar, request.response_format)
        sampling = sampling_of(request.sampling_params, request.logprobs if request.HasField("logprobs") else None)
        if request.token_ids and request.content.items:
            raise InvalidArgumentError("content and token_ids exclude each other", field="token_ids")
        if request.token_ids:
            prompt = list(request.token_ids)
            check_ids(prompt, model.tokenizer.vocab_size, field="token_ids")
        else:
            text = dialog.text_of(request.content, "content")
            prompt = await offload(len(text), model.tokenizer.encode, text)
            begin = model.tokenizer.special_tokens.get(BEGIN_OF_TEXT)
            if begin is not None:
                prompt = [begin, *prompt]
        if not prompt:
            raise InvalidArgumentError(
                "content is empty; send text to continue", reason="MISSING_FIELD", field="content"
            )
        return await self._generate(
            request.model_id,
            model,
            prompt,
            request.sampling_params,
            sampling,
            sink,
            priority=request.priority,
            grammar=grammar,
        )

    async def embed(self, request: v1.EmbedRequest) -> v1.EmbedResponse:
        """Embed texts in one engine job."""
        model = self._models[request.model_id]
        assert isinstance(model, EmbeddingModel)
        if request.HasField("output_dimension"):
            field = "output_dimension"
            raise UnsupportedError(f"{field}: {request.model_id} cannot shorten its vectors", field=field)
        texts = [dialog.text_of(content, f"contents[{index}]") for index, content in enumerate(request.contents)]
        encode = EmbeddingEncoder(model, request)
        ids = await offload(sum(map(len, texts)), encode, texts)
        embedded = await self._engine.embed(request.model_id, self._next_id("embed"), ids)
        vectors = np.frombuffer(embedded.vectors, dtype=np.float32).reshape(len(ids), embedded.dimension)
        tokens = sum(map(len, ids))
        return v1.EmbedResponse(
            embeddings=[v1.Embedding(values=row) for row in vectors.tolist()],
            usage=v1.Usage(prompt_tokens=tokens, total_tokens=tokens),
            model_id=request.model_id,
        )

    async def classify(self, request: v1.ClassifyRequest) -> v1.ClassifyResponse:
        """Classify texts in one engine job; its windows share batches with those of other callers."""
        model = self._models[request.model_id]
        assert isinstance(model, ClassifierModel)
        cuts = await offload(sum(map(len, request.texts)), cut_texts, model, request)
        windows = [model.framed(cut.ids[window.first : window.last]) for cut in cuts for window in cut.windows]
        classified = await self._engine.classify(request.model_id, self._next_id("classify"), windows)
        logits = np.frombuffer(classified.logits, dtype=np.float32).reshape(len(windows), classified.classes)
        return classify_response(request, cuts, logits.astype(np.float64), labels=model.labels)

    async def rerank(self, request: v1.RerankRequest) -> v1.RerankResponse:
        """Score items in one engine job; its pairs share batches with those of other callers."""
        model = self._models[request.model]
        assert isinstance(model, RerankModel)
        question, items = texts_of(request)
        pairs = await offload(len(question) + sum(map(len, items)), model.pairs, question, items)
        identifier = self._next_id("rerank")
        answer = await self._engine.classify(request.model, identifier, pairs.windows, firsts=pairs.firsts)
        outputs = np.frombuffer(answer.logits, dtype=np.float32).astype(np.float64)[pairs.places]
        return rerank_response(request, model.scores(outputs).tolist(), outputs=outputs.tolist())

    async def tokenize(self, request: v1.TokenizeRequest) -> v1.TokenizeResponse:
        """Token ids of a text, or of the prompt that a dialog is rendered to."""
        model = self._models[request.model_id]
        spans: Sequence[tuple[int, int]] = ()
        if request.with_offsets and (request.WhichOneof("input") != "text" or request.parse_special):
            raise InvalidArgumentError("with_offsets: send plain text, without parse_special", field="with_offsets")
        if not isinstance(model, TextModel):
            if request.WhichOneof("input") != "text":
                raise InvalidArgumentError("only text models render dialogs; send text", field="dialog")
            if request.parse_special:
                raise UnsupportedError("parse_special: only text models take special tokens", field="parse_special")
            if isinstance(model, EmbeddingModel):
                encoding = await offload(len(request.text), model.tokenizer.encode, request.text)
                ids, spans = encoding.ids, encoder_spans(encoding) if request.with_offsets else ()
            elif request.with_offsets:
                message = "with_offsets: classifiers and rerank models do not say where tokens lie"
                raise UnsupportedError(message, field="with_offsets")
            else:
                ids = model.tokenizer.encode(request.text).ids
        elif request.WhichOneof("input") == "dialog":
            tools = dialog.tool_definitions(request.tools)
            arguments = template_arguments(model, request)
            ids = await self._render(
                model, request.dialog.messages, tools=tools, config=request.tool_config, arguments=arguments
            )
        else:
            text, special = request.text, request.parse_special
            ids = await offload(len(text), model.tokenizer.encode, text, special=special)
            if request.with_offsets:
                spans = await offload(len(text), byte_spans, text, [model.tokenizer.token_bytes(one) for one in ids])
        starts, ends = zip(*spans, strict=True) if spans else ((), ())
        return v1.TokenizeResponse(token_ids=ids, max_context=model.context, starts=starts, ends=ends)

    async def detokenize(self, request: v1.DetokenizeRequest) -> v1.DetokenizeResponse:
        """Text of token ids; special tokens by their names."""
        model = self._models[request.model_id]
        if isinstance(model, EmbeddingModel):
            check_ids(request.token_ids, model.tokenizer.get_vocab_size(), field="token_ids")
            return v1.DetokenizeResponse(
                text=model.tokenizer.decode(list(request.token_ids), skip_special_tokens=False)
            )
        if isinstance(model, ClassifierModel | RerankModel):
            check_ids(request.token_ids, model.tokenizer.size, field="token_ids")
            return v1.DetokenizeResponse(text=model.tokenizer.decode(request.token_ids))
        tokenizer = model.tokenizer
        check_ids(request.token_ids, tokenizer.vocab_size, field="token_ids")
        names = {token_id: name.encode() for name, token_id in tokenizer.special_tokens.items()}
        raw = b"".join(names.get(token_id) or tokenizer.token_bytes(token_id) for token_id in request.token_ids)
        return v1.DetokenizeResponse(text=raw.decode(errors="replace"))

    async def _render(
        self,
        model: TextModel,
        messages: Sequence[v1.Message],
        *,
        tools: list[ToolDefinition],
        config: v1.ToolConfig,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[int]:
        chat = dialog.chat_messages(messages)
        form = prompt_format(config)
        if form and form not in model.chat_format.tool_prompt_formats:
            field, known = "tool_config.tool_prompt_format", ", ".join(model.chat_format.tool_prompt_formats)
            raise UnsupportedError(
                f"{field}: this model's template describes tools for {known} calls only", field=field
            )

        def render() -> list[int]:
            return model.chat_format.render(chat, tools=tools, tool_prompt_format=form, arguments=arguments)

        try:
            return await offload(sum(len(message.content) for message in chat), render)
        except ValueError as error:  # the model's template refuses this dialog
            raise InvalidArgumentError(f"messages: {error}", field="messages") from error

    async def _generate(  # noqa: PLR0917 (private: chat and complete share it)
        self,
        model_id: str,
        model: TextModel,
        prompt: list[int],
        params: v1.SamplingParams,
        sampling: Sampling,
        sink: Sink,
        *,
        priority: int,
        grammar: str = "",
        calls: Calls | None = None,
    ) -> Answer:
        """Run token ids through the engine and push the text into the sink."""
        for token_id in params.logit_bias:
            check_ids([token_id], model.tokenizer.vocab_size, field="sampling_params.logit_bias")
        check_ids(sampling.asked_tokens, model.tokenizer.vocab_size, field="logprobs.token_ids")
        room = self._config.waiting_requests + self._config.running_requests
        if self._engine.in_flight >= room:
            raise ResourceExhaustedError(f"{room} requests are in flight; ask again in a second", retry_after=1.0)
        max_tokens = allowed_tokens(len(prompt), params.max_tokens, context=model.context, model_id=model_id)
        reading = Reading(model.tokenizer, stop=tuple(params.stop), sink=sink, sampling=sampling)
        request = Request(
            request_id=self._next_id("gen"),
            prompt_ids=tuple(prompt),
            max_tokens=max_tokens,
            stop_ids=model.tokenizer.eos_ids,
            sampling=sampling,
            grammar=grammar,
            calls=calls,
            tenant=current_tenant(),
            priority=priority,
        )
        sink.admitted()
        run = asyncio.ensure_future(self._engine.generate(model_id, request, reading.on_token))
        reading.on_stop = run.cancel  # a stop string ends the request in the engine too
        if isinstance(sink, ToolStream):
            reading.on_python_tag = sink.python_tag
            sink.on_enough = reading.stop
        try:
            await run
        except asyncio.CancelledError:
            if not reading.stopped:
                raise
        finally:
            run.cancel()
        return reading.answer(prompt_tokens=len(prompt))

    def _text_model(self, model_id: str) -> TextModel:
        model = self._models[model_id]
        assert isinstance(model, TextModel)
        return model

    def _next_id(self, kind: str) -> str:
        return f"{kind}-{next(self._ids)}"
