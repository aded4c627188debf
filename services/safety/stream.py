"""Moderated streams: text is held until it was judged, in windows that grow, each with the text before it as context.

The first window closes at the end of a sentence, after 48 tokens or 400 ms after its first character, later ones after
72, 96, 128 and then always 160 tokens. Each is judged once, together with what is still held and the end of what went
before; so every character is judged with its surroundings and the text sent grows with the answer, never with its
square. After a judgement everything up to the last sentence end leaves; an open sentence waits for its next judgement,
or, where it is long, all but its last words do. The caller's model decodes on meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from llamastack import v1
from services.runtime.together import together
from services.safety.decide import blocks, placeholder, strictest, violation_of
from services.safety.judge import Bench, Outcome
from services.safety.policy import Policy
from services.safety.registry import Entry
from services.safety.segment import last_clause_end, last_sentence_end, least_tokens, words_before
from services.safety.shield import Span, Surface, surface_name
from stack_client.errors import InvalidArgumentError, StackError

FIRST_SECONDS = 0.4
WINDOWS = (48, 72, 96, 128, 160)
"""Tokens of each window; the last size repeats."""
CONTEXT_WORDS = 64
"""Words before a window that are judged again with it."""
HELD_WORDS = 12
"""Words of an open sentence that wait for the next judgement at least."""
LONG_SENTENCE = 40
"""Words of an open sentence from which it is no longer held whole."""
REDACTION_CHARACTERS = 64
"""Held where the policy redacts: what is looked for may go on in the next window."""
AHEAD_CHARACTERS = 16_384
"""Text taken from the caller beyond what was judged; it waits then."""

_MODES = {
    v1.STREAM_MODERATION_MODE_HOLD: "hold",
    v1.STREAM_MODERATION_MODE_WHOLE: "whole",
    v1.STREAM_MODERATION_MODE_OBSERVE: "observe",
}


class ModeratedStream:
    """One text on its way from the model to the reader.

    Args:
        bench: Judges.
        entries: The shields, all of which judge each window.
        policy: The version that holds for the whole stream.
        surface: What the text is.
        dialog: The messages before it.
        mode: When text leaves; unspecified means as the policy says.
        write: Sends one event.
        offsets_only: Send offsets without text.
    """

    def __init__(
        self,
        bench: Bench,
        entries: Sequence[Entry],
        *,
        policy: Policy,
        surface: Surface,
        dialog: Sequence[v1.Message],
        mode: "v1.StreamModerationMode.ValueType",
        write: Callable[..., Awaitable[None]],
        offsets_only: bool,
    ) -> None:
        self._bench = bench
        self._entries = entries
        self._policy = policy
        self._surface = surface
        self._dialog = dialog
        self._mode = _MODES.get(mode) or policy.stream_mode(surface_name(surface))
        if self._mode == "hold" and not all(entry.implementation.streams for entry in entries):
            self._mode = "whole"  # one of them can only judge the text as a whole
        self._write = write
        self._offsets_only = offsets_only
        self._redacts = any(self._action(entry) == "redact" for entry in entries)
        self._text = ""
        self._judged = 0
        self._released = 0
        self._window = 0
        self._oldest = 0.0  # when the first character arrived that is not judged
        self._ended = False
        self.over = False
        """The terminal event was sent; what still comes is not looked at."""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._spans: list[Span] = []
        self._found: list[v1.Verdict] = []
        self._calls = self._tokens = self._bytes = 0

    async def push(self, text: str) -> None:
        """Take more text; waits while too much of it is not judged yet.

        Raises:
            InvalidArgumentError: If the text becomes too long.
        """
        most = self._bench.most_characters
        if len(self._text) + len(text) > most:
            message = f"the text is longer than {most} characters (safety.text_characters)"
            raise InvalidArgumentError(message, field="delta.text")
        if self.over:
            return
        if self._judged == len(self._text):
            self._oldest = time.monotonic()
        self._text += text
        if self._mode == "observe":
            await self._release(len(self._text))
        self._news.set()
        if self._mode != "whole" and len(self._text) - self._judged > AHEAD_CHARACTERS:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """No more text comes."""
        self._ended = True
        self._news.set()

    async def run(self) -> None:
        """Judge and release until the end; sends exactly one terminal event.

        Raises:
            StackError: If no judgement could be asked for; no terminal event was sent then.
        """
        try:
            await self._run()
        finally:
            self.over = True
            self._room.set()

    async def _run(self) -> None:
        while await self._due():
            end, final = len(self._text), self._ended
            if await self._judge(end):
                return
            self._judged = end
            self._room.set()
            self._window += 1
            if self._mode != "observe":
                await self._release(end if final else self._boundary(end))
        await self._release(len(self._text))
        await self._write(completed=self._summary(self._found))
        self._bench.stream_ended("completed", calls=self._calls, sent=self._bytes)

    async def _due(self) -> bool:
        """Wait until the next window is to be judged; False when all of the text was."""
        while True:
            self._news.clear()
            pending = len(self._text) - self._judged
            if self._ended:
                return pending > 0
            wait = self._wait(pending)
            if wait is not None and wait <= 0:
                return True
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _wait(self, pending: int) -> float | None:
        """Seconds until the window closes by itself; None where only more text closes it."""
        if not pending or self._mode == "whole":
            return None
        tokens = least_tokens(self._text[self._judged :])
        if tokens >= WINDOWS[min(self._window, len(WINDOWS) - 1)]:
            return 0.0
        if self._window:
            return None
        if tokens and last_sentence_end(self._text, self._judged, len(self._text)) > self._judged:
            return 0.0
        return max(0.0, self._oldest + FIRST_SECONDS - time.monotonic())

    async def _judge(self, end: int) -> bool:
        """Judge up to `end`; whether that ended the stream."""
        start = 0 if self._mode == "whole" else self._context_start()
        text = self._text[start:end]
        outcomes = await self._ask(text, settled=self._judged - start)
        for outcome in outcomes:
            self._note(outcome, start)
            await self._write(verdict=outcome.verdict)
        stopping = [outcome.verdict for outcome in outcomes if blocks(outcome.verdict)]
        if not stopping or self._mode == "observe":
            return False
        worst = strictest(stopping)
        found = [verdict for verdict in stopping if verdict.codes or not verdict.HasField("error")]
        if found:
            await self._write(blocked=self._summary(found))
            self._bench.stream_ended("blocked", calls=self._calls, sent=self._bytes)
        else:
            await self._write(failed=worst.error)
            self._bench.stream_ended("failed", calls=self._calls, sent=self._bytes)
        return True

    async def _ask(self, text: str, *, settled: int) -> list[Outcome]:
        async def one(entry: Entry) -> Outcome:
            return await self._bench.judge(
                entry, text, self._surface, policy=self._policy, dialog=self._dialog,
                message_index=len(self._dialog), settled=settled,
            )  # fmt: skip

        return await together([one(entry) for entry in self._entries])

    def _note(self, outcome: Outcome, start: int) -> None:
        """Count a judgement and put its places into the whole text's."""
        judgement, verdict = outcome.judgement, outcome.verdict
        self._calls += judgement.guard_calls
        self._tokens += judgement.guard_tokens
        self._bytes += judgement.guard_bytes
        for place in verdict.spans:
            place.start += start
            place.end += start
        if verdict.level != v1.VIOLATION_LEVEL_UNSPECIFIED:
            self._found.append(verdict)
        for span in outcome.redactions:
            moved = Span(start=span.start + start, end=span.end + start, code=span.code, replacement=span.replacement)
            if moved not in self._spans:
                self._spans.append(moved)

    def _context_start(self) -> int:
        """Where the next window's text begins: what is held, and the words before it from a sentence's start on."""
        begin = min(self._released, self._judged)
        words = words_before(self._text, begin, CONTEXT_WORDS)
        before = max(0, words - 4 * CONTEXT_WORDS)
        sentence = last_sentence_end(self._text, before, words)
        return words if before and sentence == before else sentence

    def _boundary(self, end: int) -> int:
        """Up to where judged text may leave while more is to come."""
        sentence = last_sentence_end(self._text, self._released, end)
        if self._redacts:
            end = max(self._released, end - REDACTION_CHARACTERS)
        open_words = least_tokens(self._text[sentence:end])
        limit = sentence
        if sentence == self._released or open_words > LONG_SENTENCE:
            held = min(HELD_WORDS, max(1, open_words // 2))
            limit = words_before(self._text, end, held, start=sentence)
            clause = last_clause_end(self._text, sentence, limit)
            limit = clause if clause > sentence else limit
        limit = min(limit, end)
        for span in self._spans:  # never a part of what is taken out
            if span.start < limit < span.end:
                limit = span.start
        return max(limit, self._released)

    async def _release(self, end: int) -> None:
        if end <= self._released:
            return
        text, changed = self._clean(self._released, end)
        self._released = end
        released = v1.ReleasedText(
            end_offset=end, text="" if self._offsets_only and not changed else text, redacted=changed
        )
        await self._write(released=released)

    def _clean(self, start: int, end: int) -> tuple[str, bool]:
        """A part of the text without what the policy takes out."""
        pieces, at, changed = [], start, False
        for span in sorted(self._spans, key=lambda span: span.start):
            if span.end <= at or span.start >= end:
                continue
            pieces.append(self._text[at : max(at, span.start)])
            pieces.append(placeholder(span))
            at, changed = min(span.end, end), True
        pieces.append(self._text[at:end])
        return "".join(pieces), changed

    def _summary(self, verdicts: Sequence[v1.Verdict]) -> v1.ModerationSummary:
        return v1.ModerationSummary(
            released_offset=self._released,
            received_offset=len(self._text),
            guard_calls=self._calls,
            guard_tokens=self._tokens,
            guard_bytes=self._bytes,
            violation=violation_of(strictest(list(verdicts))) if verdicts else None,
            verdicts=verdicts,
        )

    def _action(self, entry: Entry) -> str:
        bound = self._policy.binding(surface_name(self._surface), entry.shield.identifier)
        return bound.action or entry.settings.action


async def read_stream(requests: AsyncIterator[v1.StreamModerateRequest], stream: ModeratedStream) -> None:
    """Hand the caller's pieces to the stream.

    Raises:
        StackError: If a piece does not follow the one before.
    """
    last = 0
    async for request in requests:
        if stream.over:
            continue
        match request.WhichOneof("message"):
            case "delta":
                last = _next(last, request.delta.sequence)
                if not request.delta.text:
                    raise InvalidArgumentError("delta.text is empty", reason="MISSING_FIELD", field="delta.text")
                await stream.push(request.delta.text)
            case "end":
                if request.end.last_sequence != last:
                    raise _gap("end.last_sequence", request.end.last_sequence, last)
                stream.end()
                return
            case _:
                raise InvalidArgumentError("a stream has one start; send delta or end now", field="start")
    if stream.over:
        return
    # The caller closed its side without saying that the text is whole: what is held must not leave.
    raise InvalidArgumentError("the stream ended without `end`", reason="MISSING_FIELD", field="end")


def _next(last: int, sequence: int) -> int:
    if sequence != last + 1:
        raise _gap("delta.sequence", sequence, last + 1)
    return sequence


def _gap(field: str, sequence: int, wanted: int) -> StackError:
    return InvalidArgumentError(f"{field} is {sequence}; {wanted} is due", field=field)
