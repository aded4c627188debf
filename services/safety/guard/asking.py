"""Asking a Llama Guard about one conversation: by the logits of its two words, or by the text that it writes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from llamastack import v1
from services.runtime.together import together
from services.safety.guard import prompt
from services.safety.guard.categories import CategorySet
from services.safety.guard.model import GuardModel, Tally, Words, agent_message, user_message
from services.safety.guard.prompt import Turn
from services.safety.guard.reply import Reply, parse_reply
from services.safety.guard.scores import OUTSIDE_LIMIT, NumbersError, WordScore, shares, word_score
from services.safety.guard.windows import Size, Window
from stack_client.content import text_of
from stack_client.errors import FailedPreconditionError, UnsupportedError

CHARS_PER_TOKEN = 2
"""Assumed of models that cannot count; real text has about four, so that a prompt taken to fit does fit."""
TEMPLATE_TOKENS = 512
"""Assumed length of what an endpoint's own template puts around a dialog."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a guard said about one window."""

    score: float | None
    """Score of the window, 0 to 1; None when the answer means nothing."""
    scored_by: str
    """`logits` or `logprobs`: a probability of the model; `text`: 1 or 0 by what it wrote."""
    reply: Reply | None = None
    """The text, understood; None where none was needed."""
    p_unsafe: float | None = None
    """Probability of `unsafe` between the two words, where known."""
    outside_mass: float | None = None
    """Probability outside the two words, where known."""
    category_scores: Mapping[str, float] = field(default_factory=dict)
    """Score by own code, enabled ones only."""
    failure: str = ""
    """Why there is no score."""


class Route(Protocol):
    """A way to ask."""

    template: str
    """Whose template writes the prompt: `checkpoint` or `builtin`."""

    async def measure(self, turns: Sequence[Turn]) -> Size:
        """How long the prompt of these turns is.

        Raises:
            StackError: If a call fails.
        """

    async def ask(self, window: Window, threshold: float, tally: Tally) -> Answer:
        """The guard's answer about a window's last turn, measured before.

        Raises:
            StackError: If a call fails.
        """


class TokenRoute:
    """For models that give token ids and log probabilities: one prefill, and codes only from the threshold on."""

    def __init__(self, model: GuardModel, categories: CategorySet, *, checkpoint: bool, max_tokens: int) -> None:
        self.template = "checkpoint" if checkpoint else "builtin"
        self._model = model
        self._categories = categories
        self._max_tokens = max_tokens

    async def measure(self, turns: Sequence[Turn]) -> Size:
        """Tokens by the model's own count."""
        response = await self._tokenized(turns)
        # Beside the answer, the newline pair and a forced start of the answer need room.
        room = response.max_context - self._max_tokens - 8
        return Size(len(response.token_ids), room, tuple(response.token_ids))

    async def ask(self, window: Window, threshold: float, tally: Tally) -> Answer:
        """Read two logits after the newline pair."""
        try:
            return await self._answer(window, threshold, tally)
        except NumbersError as error:
            return unusable(error, scored_by="logits")

    async def _answer(self, window: Window, threshold: float, tally: Tally) -> Answer:
        ids = list(window.ids)
        words = await self._model.words(self._categories)
        if words is None:
            return await self._by_text(ids, tally)
        pair = words.pair if self._categories.profile.frame.pair_first else ()
        if pair and tuple(ids[-len(pair) :]) != pair:
            ids = [*ids, *pair]
        score = await self._word_score(ids, words, tally)
        if score is None or score.outside_mass > OUTSIDE_LIMIT:
            answer = await self._by_text(ids, tally)
            return replace(answer, outside_mass=score.outside_mass if score else None)
        if score.p_unsafe < threshold:
            return Answer(
                score=score.p_unsafe, scored_by="logits", p_unsafe=score.p_unsafe, outside_mass=score.outside_mass
            )
        return await self._with_codes(ids, words, score, tally)

    async def _tokenized(self, turns: Sequence[Turn]) -> v1.TokenizeResponse:
        if self.template == "builtin":
            return await self._model.prompt_of_text(prompt.whole(turns, self._categories))
        return await self._model.prompt_of_dialog(dialog_of(turns), template_arguments(self._categories))

    async def _word_score(self, ids: list[int], words: Words, tally: Tally) -> WordScore | None:
        logprobs = await self._model.next_token(ids, (words.safe, words.unsafe), tally)
        if logprobs is None:
            return None  # the model would rather end its answer than say anything
        return word_score(safe=logprobs[0], unsafe=logprobs[1])

    async def _by_text(self, ids: list[int], tally: Tally) -> Answer:
        text, complete = await self._model.generate(ids, tally, max_tokens=self._max_tokens)
        return by_text(parse_reply(text, self._categories, complete=complete))

    async def _with_codes(self, ids: list[int], words: Words, score: WordScore, tally: Tally) -> Answer:
        """Codes and category shares, continued on the cached prefix."""
        forced = [*ids, words.unsafe, *words.newline]
        text, complete = await self._model.generate(forced, tally, max_tokens=self._max_tokens)
        found = await self._shares(forced, words, tally)
        reply = parse_reply(f"unsafe\n{text}", self._categories, complete=complete)
        if reply.verdict == "indeterminate":  # the two words have decided; only the codes are unclear
            reply = Reply(verdict="unsafe")
        excluded = reply.verdict == "excluded"
        enabled = {code: share for code, share in found.items() if code not in self._categories.excluded}
        return Answer(
            score=0.0 if excluded else score.p_unsafe,
            scored_by="logits",
            reply=reply,
            p_unsafe=score.p_unsafe,
            outside_mass=score.outside_mass,
            category_scores={} if excluded else {code: score.p_unsafe * share for code, share in enabled.items()},
        )

    async def _shares(self, forced: list[int], words: Words, tally: Tally) -> dict[str, float]:
        """Shares of the first code named, given unsafe; empty where codes are no letter and one number token."""
        letters = list(words.letters)
        if not letters:
            return {}
        weights = {letters[0]: 1.0}
        if len(letters) > 1:
            first = await self._model.next_token(forced, [words.letters[letter] for letter in letters], tally)
            weights = shares(dict(zip(letters, first, strict=True))) if first else {}
        by_letter = await together(self._numbers(forced, words, letter, tally) for letter in weights)
        return {
            code: weights[letter] * share
            for letter, codes in zip(weights, by_letter, strict=True)
            for code, share in codes.items()
        }

    async def _numbers(self, forced: list[int], words: Words, letter: str, tally: Tally) -> dict[str, float]:
        codes = [code for code in words.numbers if code[0] == letter]
        asked = [words.numbers[code] for code in codes]
        logprobs = await self._model.next_token([*forced, words.letters[letter]], asked, tally)
        return shares(dict(zip(codes, logprobs, strict=True))) if logprobs else {}


class ChatRoute:
    """For models that only chat: the answer is read as text, with the likeliest tokens where they are listed."""

    def __init__(
        self,
        model: GuardModel,
        categories: CategorySet,
        *,
        endpoint_template: bool,
        with_logprobs: bool,
        context: int,
        max_tokens: int,
    ) -> None:
        self.template = "checkpoint" if endpoint_template else "builtin"
        self._model = model
        self._categories = categories
        self._with_logprobs = with_logprobs
        self._context = context
        self._max_tokens = max_tokens

    async def measure(self, turns: Sequence[Turn]) -> Size:
        """An estimate that is rather too long."""
        if self.template == "builtin":
            tokens = len(prompt.body(turns, self._categories)) // CHARS_PER_TOKEN
        else:
            tokens = TEMPLATE_TOKENS + sum(len(turn.text) for turn in turns) // CHARS_PER_TOKEN
        return Size(tokens, self._context - self._max_tokens)

    async def ask(self, window: Window, threshold: float, tally: Tally) -> Answer:  # noqa: ARG002 (one call tells all)
        """Let the model write its verdict."""
        messages = dialog_of(window.turns)
        if self.template == "builtin":
            messages = [user_message(prompt.body(window.turns, self._categories))]
        response = await self._chat(messages, tally)
        complete = response.finish_reason == v1.FINISH_REASON_STOP
        text = text_of(response.completion_message.content)
        answer = by_text(parse_reply(text, self._categories, complete=complete))
        try:
            score = listed_score(response.logprobs) if response.logprobs else None
        except NumbersError as error:
            return unusable(error, scored_by="logprobs")
        if score is None or answer.score is None or (answer.reply and answer.reply.verdict == "excluded"):
            return answer
        return replace(
            answer,
            score=score.p_unsafe,
            scored_by="logprobs",
            p_unsafe=score.p_unsafe,
            outside_mass=score.outside_mass,
        )

    async def _chat(self, messages: Sequence[v1.Message], tally: Tally) -> v1.ChatCompletionResponse:
        if self._with_logprobs:
            try:
                return await self._model.chat(messages, tally, max_tokens=self._max_tokens, with_logprobs=True)
            except (FailedPreconditionError, UnsupportedError):
                # Endpoints that have none say so in many ways; whatever else was wrong is wrong without them too.
                response = await self._model.chat(messages, tally, max_tokens=self._max_tokens, with_logprobs=False)
                self._with_logprobs = False
                return response
        return await self._model.chat(messages, tally, max_tokens=self._max_tokens, with_logprobs=False)


def by_text(reply: Reply) -> Answer:
    """An answer by its text: 1 or 0, which is no probability."""
    failure = ""
    score: float | None = 1.0 if reply.verdict == "unsafe" else 0.0
    if reply.verdict == "indeterminate":
        score, failure = None, "the guard's answer is neither `safe` nor `unsafe` with codes"
    return Answer(score=score, scored_by="text", reply=reply, failure=failure)


def unusable(error: NumbersError, *, scored_by: str) -> Answer:
    """No judgement: what such a model writes means as little as its numbers."""
    return Answer(score=None, scored_by=scored_by, failure=f"the guard's numbers cannot be used: {error}")


def listed_score(logprobs: Sequence[v1.TokenLogProbs]) -> WordScore | None:
    """The score from the likeliest alternatives at the first token that is no white space.

    A word that is not listed counts with the probability of the least likely one listed, which is its upper bound.
    None where neither word is listed, or too much lies outside.

    Raises:
        NumbersError: If a number listed there is not finite.
    """
    for position in logprobs:
        if position.chosen.token.strip():
            break
    else:
        return None
    listed = {entry.token.strip().lower(): entry.logprob for entry in reversed(position.top)}
    listed[position.chosen.token.strip().lower()] = position.chosen.logprob
    if not all(map(math.isfinite, (position.chosen.logprob, *(entry.logprob for entry in position.top)))):
        raise NumbersError("log probabilities of its first word are not finite")
    if "safe" not in listed and "unsafe" not in listed:
        return None
    least = min(listed.values())
    safe, unsafe = listed.get("safe", least), listed.get("unsafe", least)
    score = word_score(safe=min(safe, 0.0), unsafe=min(unsafe, 0.0))
    return score if score.outside_mass <= OUTSIDE_LIMIT else None


def template_arguments(categories: CategorySet) -> dict[str, Any]:
    """What a checkpoint's template is told: all lines where some were added, else only the codes to leave out."""
    if categories.custom:
        return {"categories": categories.lines()}
    if categories.excluded:
        return {"excluded_category_keys": sorted(categories.excluded, key=lambda code: int(code[1:]))}
    return {}


def dialog_of(turns: Sequence[Turn]) -> list[v1.Message]:
    """The turns as messages, for a template that wants a dialog."""
    return [user_message(turn.text) if turn.role == "User" else agent_message(turn.text) for turn in turns]
