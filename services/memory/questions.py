"""From a dialog to a question, by joining its texts or by a model that writes it."""

from typing import Any

import grpc

from llamastack import v1
from services.memory.embedder import pieces
from services.memory.render import render
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary
from stack_client.content import message, text_of
from stack_client.errors import NotFoundError, UnsupportedError

MAX_QUESTION_TOKENS = 128
REWRITE = (
    "Rewrite the text between the marks as one short search query. Keep names, numbers and rare words, leave out "
    "politeness and filler. Answer with the query alone.\n---\n{question}\n---"
)


class QuestionWriter:
    """Chat models that write queries, and their tokens.

    Args:
        channel: To the inference service.
        model: Of callers that name none; empty means the first chat model served.
    """

    def __init__(self, channel: grpc.aio.Channel, *, model: str) -> None:
        self._inference: Any = v1.InferenceServiceStub(channel)
        self._models: Any = v1.ModelsServiceStub(channel)
        self._model = model

    async def question(self, content: v1.InterleavedContent, config: v1.QueryGeneratorConfig, *, field: str) -> str:
        """The query that a dialog's content becomes.

        Raises:
            UnsupportedError: If it holds an image, or the deployment's own generator is asked for.
            InvalidArgumentError: If the template is broken.
            StackError: If the model fails.
        """
        if any(item.WhichOneof("item") == "image" for item in content.items):
            raise UnsupportedError("content: images cannot be searched for; ask with text", field="content")
        texts = [item.text for item in content.items]
        match config.WhichOneof("generator"):
            case "custom":
                message_ = f"{field}: this deployment has no generator of its own; use default or llm"
                raise UnsupportedError(message_, field=field)
            case "llm":
                messages = [{"role": "user", "content": text} for text in texts]
                prompt = await render(config.llm.template, messages, field=f"{field}.llm.template")
                return await self._ask(config.llm.model, prompt)
            case _:
                separator = config.default.separator if config.default.HasField("separator") else " "
                return separator.join(texts)

    async def rewrite(self, question: str) -> str:
        """A question as a model would search for it; the question itself when the model writes nothing.

        Raises:
            StackError: If there is no chat model, or it fails.
        """
        return await self._ask(await self.model(), REWRITE.format(question=question)) or question

    async def model(self, model: str = "") -> str:
        """A chat model's identifier: the one named, the configured one, or the first that is served.

        Raises:
            NotFoundError: If none is served.
        """
        if model or self._model:
            return model or self._model
        models = await every_page(self._models.ListModels, v1.ListModelsRequest(), timeout=DEFAULT_TIMEOUT)
        for one in models:
            if one.model_type == v1.MODEL_TYPE_LLM:
                return str(one.identifier)
        message_ = "the inference service has no chat model; register one, or set memory.chat_model"
        raise NotFoundError(message_, reason="MODEL_NOT_FOUND", field="model")

    async def tokens(self, model: str, text: str) -> int:
        """Tokens of a text in a model's vocabulary; in pieces of words where the model cannot be asked.

        Raises:
            StackError: If the call fails.
        """
        request = v1.TokenizeRequest(model_id=model, text=text)
        try:
            return len((await unary(self._inference.Tokenize(request, timeout=DEFAULT_TIMEOUT))).token_ids)
        except UnsupportedError:
            return len(pieces(text))

    async def _ask(self, model: str, prompt: str) -> str:
        params = v1.SamplingParams(max_tokens=MAX_QUESTION_TOKENS)
        request = v1.ChatCompletionRequest(model_id=model, messages=[message(prompt)], sampling_params=params)
        response: v1.ChatCompletionResponse = await unary(
            self._inference.ChatCompletion(request, timeout=DEFAULT_TIMEOUT)
        )
        return text_of(response.completion_message.content).strip()
