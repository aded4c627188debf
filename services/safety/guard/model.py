"""A guard model behind the inference service: its words as token ids, its next token, its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastack import v1
from services.runtime.together import together
from services.safety.guard.categories import CategorySet
from services.safety.guards import Guards
from stack_client.content import content

PAIR = "\n\n"
TOP_LISTED = 20
"""Alternatives asked of an endpoint that cannot be asked for tokens by id."""


PRIORITY = 50
"""Answers wait for their verdicts: a guard on the same engine goes first, or both would wait for each other's slots."""


@dataclass
class Tally:
    """What one judgement cost so far."""

    calls: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Words:
    """Token ids of what a guard says."""

    safe: int
    unsafe: int
    pair: tuple[int, ...]
    """Two newlines, with which the answers of some versions begin."""
    newline: tuple[int, ...]
    letters: Mapping[str, int]
    """Id by first letter of the codes; empty where codes are not a letter and one number token."""
    numbers: Mapping[str, int]
    """Id of the number by own code."""


class GuardModel:
    """One model, as the Llama Guard shield asks it."""

    def __init__(self, guards: Guards, model_id: str) -> None:
        self._guards = guards
        self._words: Words | None = None
        self._looked_up = False
        self.model_id = model_id

    async def prompt_of_text(self, text: str) -> v1.TokenizeResponse:
        """Ids of a prompt that we built, its special tokens taken as such.

        Raises:
            StackError: If the call fails; UnsupportedError if the model has no tokenizer.
        """
        return await self._guards.tokenize(v1.TokenizeRequest(model_id=self.model_id, text=text, parse_special=True))

    async def prompt_of_dialog(
        self, messages: Sequence[v1.Message], arguments: Mapping[str, Any]
    ) -> v1.TokenizeResponse:
        """Ids of a dialog's prompt by the checkpoint's own template.

        Raises:
            StackError: If the call fails.
        """
        request = v1.TokenizeRequest(model_id=self.model_id, dialog=v1.Dialog(messages=messages))
        if arguments:
            request.template_arguments.update(arguments)
        return await self._guards.tokenize(request)

    async def words(self, categories: CategorySet) -> Words | None:
        """The ids, looked up once; None where `safe` or `unsafe` is not one token, so that logits say nothing.

        Raises:
            StackError: If a call fails.
        """
        if not self._looked_up:
            self._words = await self._look_up(categories)
            self._looked_up = True
        return self._words

    async def _look_up(self, categories: CategorySet) -> Words | None:
        codes = list(categories.lines())
        asked = ["safe", "unsafe", PAIR, "\n", *codes]
        answers = await together(self._ids(text) for text in asked)
        ids = dict(zip(asked, answers, strict=True))
        if len(ids["safe"]) != 1 or len(ids["unsafe"]) != 1 or ids["safe"] == ids["unsafe"]:
            return None
        readable = all(len(ids[code]) == 2 for code in codes)
        letters = {code[0]: ids[code][0] for code in codes} if readable else {}
        numbers = {code: ids[code][1] for code in codes} if readable else {}
        by_letter = [(letters.get(code[0]), numbers.get(code)) for code in codes]
        distinct = (
            readable and len(set(by_letter)) == len(codes) and all(letters[code[0]] == ids[code][0] for code in codes)
        )
        return Words(
            safe=ids["safe"][0],
            unsafe=ids["unsafe"][0],
            pair=ids[PAIR],
            newline=ids["\n"],
            letters=letters if distinct else {},
            numbers=numbers if distinct else {},
        )

    async def _ids(self, text: str) -> tuple[int, ...]:
        response = await self._guards.tokenize(v1.TokenizeRequest(model_id=self.model_id, text=text))
        return tuple(response.token_ids)

    async def next_token(self, ids: Sequence[int], asked: Sequence[int], tally: Tally) -> list[float] | None:
        """Natural log probabilities of the asked tokens after a prompt; None where the engine reports none.

        Raises:
            StackError: If the call fails; UnsupportedError if the model gives no log probabilities of named tokens.
        """
        response = await self._complete(ids, tally, max_tokens=1, logprobs=v1.LogProbConfig(token_ids=asked))
        if not response.logprobs:
            return None
        by_id = {entry.token_id: entry.logprob for entry in response.logprobs[0].asked}
        return [by_id[token] for token in asked] if all(token in by_id for token in asked) else None

    async def generate(self, ids: Sequence[int], tally: Tally, *, max_tokens: int) -> tuple[str, bool]:
        """The text that follows, and whether the model ended it.

        Raises:
            StackError: If the call fails.
        """
        response = await self._complete(ids, tally, max_tokens=max_tokens)
        return response.content, response.finish_reason == v1.FINISH_REASON_STOP

    async def _complete(
        self, ids: Sequence[int], tally: Tally, *, max_tokens: int, logprobs: v1.LogProbConfig | None = None
    ) -> v1.CompletionResponse:
        request = v1.CompletionRequest(
            model_id=self.model_id,
            token_ids=ids,
            sampling_params=_greedy(max_tokens),
            logprobs=logprobs,
            priority=PRIORITY,
        )
        response = await self._guards.complete(request)
        tally.calls += 1
        tally.tokens += response.usage.prompt_tokens
        return response

    async def chat(
        self, messages: Sequence[v1.Message], tally: Tally, *, max_tokens: int, with_logprobs: bool
    ) -> v1.ChatCompletionResponse:
        """The answer to a dialog, with the likeliest alternatives of each token where asked for.

        Raises:
            StackError: If the call fails; UnsupportedError if log probabilities are not given.
        """
        request = v1.ChatCompletionRequest(
            model_id=self.model_id, messages=messages, sampling_params=_greedy(max_tokens)
        )
        if with_logprobs:
            request.logprobs.top_k = TOP_LISTED
        response = await self._guards.chat(request)
        tally.calls += 1
        tally.tokens += response.usage.prompt_tokens
        return response


def user_message(text: str) -> v1.Message:
    """A text as the user's message."""
    return v1.Message(user=v1.UserMessage(content=content(text)))


def agent_message(text: str) -> v1.Message:
    """A text as the model's message."""
    return v1.Message(assistant=v1.CompletionMessage(content=content(text), stop_reason=v1.STOP_REASON_END_OF_TURN))


def _greedy(max_tokens: int) -> v1.SamplingParams:
    return v1.SamplingParams(strategy=v1.SamplingStrategy(greedy=v1.GreedySamplingStrategy()), max_tokens=max_tokens)
