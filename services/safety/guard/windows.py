"""Fitting a conversation into a guard model's context: older turns go first, the judged text is never cut.

A text that does not fit by itself is read in overlapping windows, each with the same context before it.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.safety.guard.conversation import Conversation
from services.safety.guard.prompt import Turn

MAX_WINDOWS = 16
"""Windows of one text at most; what lies behind them lowers the coverage."""
_SHARED = 8  # neighbouring windows share an eighth of their characters
_CONTEXT_SHARE = 2  # what must stand before the text gets at most half of the room
_TRIES = 12


class Size(NamedTuple):
    """How long a prompt is."""

    tokens: int
    """Tokens of the prompt."""
    room: int
    """Tokens that a prompt may have."""
    ids: tuple[int, ...] = ()
    """The prompt itself, where measuring it has made it."""


Measure = Callable[[Sequence[Turn]], Awaitable[Size]]


@dataclass(frozen=True)
class Window:
    """A part of the judged text with its context, short enough for the model."""

    turns: tuple[Turn, ...]
    start: int
    """First character in the quoted text."""
    end: int
    """One past the last."""
    ids: tuple[int, ...] = ()
    """The prompt, where measuring it has made it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a conversation is read."""

    windows: tuple[Window, ...]
    coverage: float
    """Share of the text's characters that some window holds."""
    dropped: int = 0
    """Older turns that were left out."""
    context_cut: bool = False
    """Whether the context that must stay was cut to its end."""


async def plan(conversation: Conversation, measure: Measure, *, settled: int = 0) -> Plan:
    """Windows that fit.

    Args:
        conversation: What is to be judged.
        measure: Says how long a prompt of the given turns is.
        settled: Characters at the start of the text that need no judgement of their own.
    """
    older = list(conversation.older)
    size = await measure(conversation.turns(older, conversation.text))
    while size.tokens > size.room and len(older) > conversation.required:
        older = _without_oldest(older, conversation, size)
        size = await measure(conversation.turns(older, conversation.text))
    dropped = len(conversation.older) - len(older)
    length = len(conversation.text)
    if size.tokens <= size.room:
        only = Window(conversation.turns(older, conversation.text), 0, length, size.ids)
        return Plan(windows=(only,), coverage=1.0, dropped=dropped)
    cut, older, base = await _fit_context(conversation, older, measure)
    size = await measure(cut.turns(older, cut.text))
    windows = await _windows(cut, older, measure, free=base.room - base.tokens, tokens=size.tokens - base.tokens)
    windows = [window for window in windows if window.end > settled] or windows[-1:]
    read = windows[:MAX_WINDOWS]
    return Plan(
        windows=tuple(read),
        coverage=read[-1].end / length if read else 0.0,
        dropped=dropped,
        context_cut=cut is not conversation,
    )


def _without_oldest(older: list[Turn], conversation: Conversation, size: Size) -> list[Turn]:
    """Leave out pairs of turns, as many as are about the tokens too many, so that the first stays the User's."""
    chars = sum(len(turn.text) for turn in conversation.turns(older, conversation.text))
    excess = chars * (size.tokens - size.room) / max(1, size.tokens)
    gone = 0
    while excess > 0 and len(older) - gone > conversation.required:
        excess -= sum(len(turn.text) for turn in older[gone : gone + 2])
        gone += 2
    return older[gone:]


async def _fit_context(
    conversation: Conversation, older: list[Turn], measure: Measure
) -> tuple[Conversation, list[Turn], Size]:
    """Cut what must stand before the text to its end, until it leaves half of the room to the text."""
    size = await measure(conversation.turns(older, ""))
    for _ in range(_TRIES):
        if size.tokens <= size.room / _CONTEXT_SHARE or not (conversation.lead or any(t.text for t in older)):
            break
        keep = size.room / _CONTEXT_SHARE / size.tokens / 2
        older = [Turn(turn.role, _end(turn.text, keep)) for turn in older]
        conversation = replace(conversation, lead=_end(conversation.lead, keep))
        size = await measure(conversation.turns(older, ""))
    return conversation, older, size


def _end(text: str, share: float) -> str:
    return text[len(text) - int(len(text) * share) :]


async def _windows(
    conversation: Conversation, older: Sequence[Turn], measure: Measure, *, free: int, tokens: int
) -> list[Window]:
    """Windows of the text's characters, the widest that fit; empty when nothing fits."""
    length = len(conversation.text)
    width = min(length, int(length * max(0, free) / max(1, tokens)))
    windows: list[Window] = []
    start = 0
    while start < length and len(windows) <= MAX_WINDOWS:
        end = min(length, start + width)
        while end > start:
            turns = conversation.turns(older, conversation.text[start:end])
            size = await measure(turns)
            if size.tokens <= size.room:
                windows.append(Window(turns, start, end, size.ids))
                break
            end = start + (end - start) * 3 // 4
        if end <= start:
            return []
        if end == length:
            break
        start = max(start + 1, end - (end - start) // _SHARED)
    return windows
